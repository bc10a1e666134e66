"""A project on disk: its directory, condainer.yml, environment.yml and image."""
