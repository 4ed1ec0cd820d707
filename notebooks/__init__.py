"""Notebooks for tuning and reading: thin marimo apps that show and wire; `replay notebook NAME` opens one."""
