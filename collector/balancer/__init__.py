"""Layer-4 load balancer: configuration → rings → maps of the XDP program in bpf/xdp/balancer.bpf.c."""
