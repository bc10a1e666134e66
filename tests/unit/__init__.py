"""Tests of what runs in this process: no channel, no image, no mount."""
