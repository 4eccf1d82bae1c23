//! Reads ten records as a member of a group and commits them; knows a broker's address from its first argument.

use coulee_client::{Client, OffsetReset};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7700".to_owned());
    let client = Client::connect(address).await?;
    let mut consumer = client.group("examples").topic("greetings").offset_reset(OffsetReset::Earliest).join();
    let mut left = 10;
    while left > 0 {
        let Some(mut polled) = consumer.poll().await? else { continue };
        for record in polled.batch.records()?.take(left) {
            println!("{} {}", record.offset, String::from_utf8_lossy(record.value.unwrap_or_default()));
            left -= 1;
        }
        consumer.commit().await?;
    }
    consumer.close().await?;
    Ok(())
}
