"""What people see in a browser: server-rendered, without a build chain."""
