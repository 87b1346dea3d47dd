"""The API's rpcs: each turns a request into a command or a query and its result into an answer.

Access to the rpc itself has been checked before (the gateway does, by the rpc's `access` option); what only
the service can know, such as the group of each document or item, is checked here.
"""
