"""How documents get their ids, one scheme a file."""
