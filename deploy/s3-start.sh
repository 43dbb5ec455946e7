#!/bin/sh
# The S3 gateway, with three identities: one makes the buckets, and two may each read and write one bucket only,
# so that a worker cannot reach behind the MLflow server's back for the files of released models.
set -eu
umask 077
cat > /tmp/s3.json <<JSON
{"identities": [
  {"name": "admin", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
   "credentials": [{"accessKey": "admin", "secretKey": "${S3_ADMIN_SECRET:?}"}]},
  {"name": "mlflow", "actions": ["Read:mlflow", "Write:mlflow", "List:mlflow", "Tagging:mlflow"],
   "credentials": [{"accessKey": "mlflow", "secretKey": "${S3_MLFLOW_SECRET:?}"}]},
  {"name": "dvc", "actions": ["Read:dvc", "Write:dvc", "List:dvc", "Tagging:dvc"],
   "credentials": [{"accessKey": "dvc", "secretKey": "${S3_DVC_SECRET:?}"}]}
]}
JSON
exec weed -logtostderr=true s3 -filer=store:8888 -ip.bind=0.0.0.0 -port=8333 -config=/tmp/s3.json
