"""What the draft's context policies cost and save, side by side with a server without speculation."""
