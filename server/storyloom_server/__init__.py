"""The Storyloom server: stories in over gRPC, pictures out.

The main path, file by file: ``service`` takes a story, ``validate`` checks it, ``engine_client`` hands it to the engine
process, ``engine`` runs it beside others as ``scheduler`` decides, ``events`` streams what happens back to the client.
"""
