"""Shared by tests and benches: servers, proxies before them, and the stock client in processes of its own."""
