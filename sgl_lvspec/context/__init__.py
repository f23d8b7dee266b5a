"""What the draft holds of every context: its own KV pool, what it reads of a prompt, and what it leaves out of a video."""
