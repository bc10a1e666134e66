"""From a project's environment to its image: the stages of `condainer build`."""
