"""The operator's side: the command line, SQL, and the state of the whole fleet."""
