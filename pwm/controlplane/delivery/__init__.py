"""Notices on their way out: kept until they are delivered, and sent by a process of their own."""
