"""`lvspec explain`: one answer in a terminal, with every token that was loosened and what it cost."""
