"""How a process of the commands starts threads, prints, is told to stop, and comes to its end."""
