"""The demo: a whole nearpath on loopback. Mirrors, agents, the appliance, syncd; real probes, real copies, real answers.

The mirrors are small HTTP servers on 127.0.1x.1 that wait before they answer, each agent's region its own time (it is
told by the agent's source address, 127.0.1.1 and so on), with a slow drift and noise; the API behind their gateways is a
few lines, too. Nothing else is made up: agents, appliance, syncd and local-infer are the ordinary programs with ordinary
configuration files, which stay in the demo's folder to be looked at.
"""
