//! Kafka: a message an event, acknowledged by all replicas.
//!
//! The producer is idempotent: repeats of its own are dropped by the brokers, and order within a
//! partition is kept. A batch that is repeated as a whole, after a restart or when some of its
//! messages were not confirmed, is not; consumers drop it by the header `event_id`.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use serde_json::{Map, Value};

use super::settings::KafkaSettings;
use super::{Exporter, Failure, Frozen, Make, Outgoing, Sending, secret};

const TOPIC: &str = "malakocut-flows";
const KEY: &str = "flow_id";
/// librdkafka's own limit of a batch of messages is 1 MB.
const ROOM: usize = 900_000;
/// The pause while the producer's queue is full.
const QUEUE_FULL: Duration = Duration::from_millis(20);

struct Kafka {
    config: ClientConfig,
    /// Made anew after an error that ends it.
    producer: Mutex<Option<FutureProducer>>,
    topic: String,
    key: String,
    timeout: Duration,
}

/// Checks the settings.
pub(super) fn prepare(settings: &KafkaSettings, sensor: &str) -> Result<Make, String> {
    let s = settings.clone();
    if s.brokers.is_empty() {
        return Err("[export.kafka] brokers: at least one, such as host:9092".into());
    }
    let timeout = s.delivery.timeout.as_millis().max(1).to_string();
    let mut config = ClientConfig::new();
    config
        .set("client.id", format!("malakocut-{sensor}"))
        .set("linger.ms", "5")
        .set("message.timeout.ms", &timeout)
        .set("socket.timeout.ms", s.delivery.timeout.as_millis().clamp(100, 60_000).to_string());
    for (name, value) in &s.properties {
        config.set(name, value);
    }
    if let Some(password) = secret("MALAKOCUT_KAFKA_PASSWORD", "kafka-password")? {
        config.set("sasl.password", password);
    }
    config
        .set("bootstrap.servers", s.brokers.join(","))
        .set("enable.idempotence", "true")
        .set("acks", "all");
    // Refuses what librdkafka does not know, before anything runs.
    let first = producer(&config)?;
    Ok(Box::new(move || {
        Box::pin(async move {
            let kafka = Kafka {
                config,
                producer: Mutex::new(Some(first)),
                topic: s.topic.unwrap_or_else(|| TOPIC.into()),
                key: s.key.unwrap_or_else(|| KEY.into()),
                timeout: s.delivery.timeout,
            };
            Ok(Arc::new(kafka) as Arc<dyn Exporter>)
        })
    }))
}

fn producer(config: &ClientConfig) -> Result<FutureProducer, String> {
    config.create().map_err(|e: KafkaError| format!("[export.kafka]: {e}"))
}

impl Exporter for Kafka {
    fn cost(&self, event: &Outgoing) -> usize {
        // Key and headers beside the line.
        event.line.len() + 256
    }

    fn room(&self) -> usize {
        ROOM
    }

    fn send<'a>(&'a self, batch: &'a Frozen) -> Sending<'a> {
        Box::pin(async move {
            let producer = self.producer()?;
            let mut sent = Vec::with_capacity(batch.events.len());
            for event in &batch.events {
                sent.push(self.enqueue(&producer, &batch.id, event).await?);
            }
            let mut failure = None;
            for delivery in sent {
                match delivery.await {
                    Ok(Ok(_)) => {}
                    Ok(Err((e, _))) => failure = Some(self.refused(&e)),
                    Err(_) => failure = Some(again("connection", "the producer was closed".into())),
                }
            }
            failure.map_or(Ok(()), Err)
        })
    }

    fn test(&self) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>> {
        Box::pin(async move {
            let producer = self.producer().map_err(|f| format!("{f:?}"))?;
            let found = producer.client().fetch_metadata(Some(&self.topic), self.timeout);
            let found = found.map_err(|e| e.to_string())?;
            let topic = found.topics().iter().find(|t| t.name() == self.topic);
            match topic.map(|t| (t.partitions().len(), t.error())) {
                Some((n, None)) if n > 0 => Ok(format!(
                    "{} brokers; topic {} has {n} partitions",
                    found.brokers().len(),
                    self.topic
                )),
                _ => Err(format!("topic {} is not there", self.topic)),
            }
        })
    }
}

impl Kafka {
    fn producer(&self) -> Result<FutureProducer, Failure> {
        let mut slot = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(producer) = &*slot {
            return Ok(producer.clone());
        }
        let made = producer(&self.config).map_err(|why| Failure::Hold { kind: "producer", why })?;
        *slot = Some(made.clone());
        Ok(made)
    }

    async fn enqueue(
        &self,
        producer: &FutureProducer,
        batch: &str,
        event: &Outgoing,
    ) -> Result<rdkafka::producer::DeliveryFuture, Failure> {
        let fields: Map<String, Value> = serde_json::from_slice(&event.line).unwrap_or_default();
        let key = match fields.get(&self.key) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let id = event.id.to_string();
        let headers = OwnedHeaders::new()
            .insert(Header { key: "event_id", value: Some(&id) })
            .insert(Header { key: "batch_id", value: Some(batch) });
        let mut record =
            FutureRecord::to(&self.topic).payload(&event.line).key(&key).headers(headers);
        loop {
            match producer.send_result(record) {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                    record = back;
                    tokio::time::sleep(QUEUE_FULL).await;
                }
                Err((e, _)) => return Err(self.refused(&e)),
            }
        }
    }

    fn refused(&self, e: &KafkaError) -> Failure {
        let why = format!("Kafka: {e}");
        let Some(code) = e.rdkafka_error_code() else { return again("connection", why) };
        match code {
            Code::Fatal => {
                // Ordering could not be kept any more; the next producer begins anew.
                *self.producer.lock().unwrap_or_else(PoisonError::into_inner) = None;
                again("fatal", why)
            }
            Code::MessageSizeTooLarge => Failure::TooLarge { why },
            Code::InvalidMessage | Code::InvalidRecord => Failure::Invalid { why },
            Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::InvalidTopic => {
                Failure::Hold {
                    kind: "no_topic",
                    why: format!("{why}; create the topic {}", self.topic),
                }
            }
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication => Failure::Hold {
                kind: "refused",
                why: format!("{why}; check the account and its rights on {}", self.topic),
            },
            Code::MessageTimedOut => again("timeout", why),
            _ => again("connection", why),
        }
    }
}

fn again(kind: &'static str, why: String) -> Failure {
    Failure::Retry { kind, why, after: None }
}
