"""Programs that train networks and measure them; none imports another."""
