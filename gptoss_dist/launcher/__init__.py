"""How ranks come to be: the variables a launcher sets, the command that starts ranks, and starting them here."""
