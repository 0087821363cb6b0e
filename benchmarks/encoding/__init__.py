"""Text encoders beside their peers: the servers that others run the same model with."""
