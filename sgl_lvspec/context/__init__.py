"""What the draft holds of every context: a KV pool of its own, what it reads of prompts and leaves out of videos."""
