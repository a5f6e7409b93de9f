"""int8kit against its peers: fidelity, speed, calibration cost and size, each as a script that appends result rows."""
