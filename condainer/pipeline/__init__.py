"""Turns a project's environment into its image: the stages of `condainer build`."""
