"""What a user needs to check a served pair: runs anywhere, imports only `requests` beside the standard library."""
