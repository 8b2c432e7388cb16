"""The studio: a durable queue, a library of videos, the executors that work through them, and the page over it all.

Torch is imported only by ``studio.executors.worker``, in a process of its own.
"""
