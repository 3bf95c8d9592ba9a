"""Both ends of the link without I/O: what to send, and how to react to what arrives.

Each class is one end of one stream direction. Streams may break at any time. The next stream starts from the state that a
class has then.
"""
