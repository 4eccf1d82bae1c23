//! Sends ten records and says where they went; knows a broker's address from its first argument.

use coulee_client::{Client, NewTopic, Record};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let client = Client::connect(address).await?;
    if client.topic("greetings").await.is_err() {
        client.create_topic(NewTopic::new("greetings")).await?;
    }
    let producer = client.producer("greetings").build().await?;
    for number in 0..10 {
        let delivered = producer.send(Record::new(format!("hello {number}").as_bytes())).await?.await?;
        println!("partition {} offset {:?}", delivered.partition, delivered.offset);
    }
    Ok(())
}
