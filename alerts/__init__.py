"""What people see: episodes of anomalous scores, the alerts made of them, their database and their export.

Starts without TensorFlow and MLflow. Times are int64 UTC microseconds.
"""
