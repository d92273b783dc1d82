"""The agent of a host: load probes, read events, encode batches, ship them."""
