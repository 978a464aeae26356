"""What goes between nodes, brokers and relays about relayed connections."""
