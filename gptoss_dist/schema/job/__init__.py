"""The schema of each job's keys, a module for each file of `conf/job/`."""
