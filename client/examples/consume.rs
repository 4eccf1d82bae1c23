//! Prints the records of a topic until nothing more comes; knows a broker's address from its first argument.

use coulee_client::Client;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let client = Client::connect(address).await?;
    let mut consumer = client.consumer("greetings").build().await?;
    while let Some(mut batch) = consumer.poll().await? {
        for record in batch.records()? {
            println!("{} {}", record.offset, String::from_utf8_lossy(record.value.unwrap_or_default()));
        }
    }
    Ok(())
}
