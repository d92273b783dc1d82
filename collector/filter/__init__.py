"""Drop sampling and filtering in XDP: rules, their compiler, and what they need in the kernel."""
