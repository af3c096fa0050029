"""Rooms of others: tasks for SkyPilot, generated, and a study's copy in a bucket."""
