"""On-demand probes on a host: from a document of kind `probe` to programs, results and their end."""
