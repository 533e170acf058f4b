"""What tests and benches share: servers, proxies between, and the stock client in processes of its own."""
