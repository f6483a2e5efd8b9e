"""Where bytes are kept: one protocol over S3 stores and a plain folder.

Knows buckets, keys and ETags; knows nothing of bots, generations or claims.
"""
