"""The gRPC services, one file each: check who calls and what they ask, hand it to the desk, answer."""
