"""Installers of conda packages: one interface, and the engines that implement it."""
