"""Logging in at a provider of OpenID Connect: the conversation with it, and what of its answers is believed."""
