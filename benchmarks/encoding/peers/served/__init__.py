"""What runs inside the peers, by their own Python; imports nothing of this project but :mod:`.encoder`."""
