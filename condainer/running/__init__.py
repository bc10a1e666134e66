"""Running programs from an environment: activation, variables, and `exec`."""
