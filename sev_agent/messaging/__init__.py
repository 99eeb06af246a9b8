"""RabbitMQ in the wire format of OpenStack. The only importer of aio_pika."""
