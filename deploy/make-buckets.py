"""Make the two buckets of deploy/compose.yaml, where they are not there yet, on the S3 store of AWS_ENDPOINT_URL.

python deploy/make-buckets.py
"""

import boto3

BUCKETS = ("mlflow", "dvc")


def main() -> None:
    client = boto3.client("s3")
    present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in present:
            client.create_bucket(Bucket=name)


if __name__ == "__main__":
    main()
