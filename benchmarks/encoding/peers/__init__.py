"""The peers of text encoding: what installs, starts, pauses and asks them."""
