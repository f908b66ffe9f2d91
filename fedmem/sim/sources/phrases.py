# ruff: noqa: E501 - one pattern a line reads better than a wrapped one
"""Hold the sentence patterns of the generated persons: our own wording, whose fields persons.py fills in.

Invariants
- `{field}` is a field of persons.py; `[a|b|c]` is one of the alternatives.
- Every pattern is about one person's own affairs, in one to four sentences.
"""

FINANCE = (
    "[Paid|Sent|Transferred] {amount} to {shop} on {day} from {account.bank}, account ending {account.last4}. "
    "The balance is now {balance}.",
    "My {account.bank} account has the IBAN {account.iban}. [Rent|The deposit|My salary] of {amount} [goes|comes] "
    "through it on the {ordinal} of each month.",
    "Card {card.number} from {card.bank} expires {card.expires}. Its limit is {limit} and {amount} is [owed|outstanding].",
    "Salary from {employer} for {month}: gross {gross}, tax withheld {tax}, net {net} paid into {account.bank}.",
    "[Loan|Car loan|Student loan] with {card.bank}: {big} borrowed at {rate} percent, {amount} due every month until {year}.",
    "{account.bank} statement for {month}: opening balance {balance}, {count} [payments|withdrawals], closing balance {net}.",
    "The mortgage on {home} costs me {amount} a month at {rate} percent. [We still owe|There remains] {big} to {card.bank}.",
    "Asked {payee.name} to [return|repay] the {small} I lent in {month}. [He|She] will transfer it to {account.iban}.",
    "Invoice {number} from {shop} for {amount} is [overdue|due on {day}]. Pay it from the {account.bank} account.",
    "My tax return for {year} shows income of {gross} from {employer} and a refund of {small}.",
    "I put {small} [aside|into savings] each month. The savings account at {account.bank} holds {balance} and earns {rate} percent.",
    "The credit card bill for {month} is {amount}: {small} at {shop}, and the rest on [groceries|fuel|travel|books].",
    "Standing order: {small} to {payee.name} on the {ordinal} of the month, reference {number}, from {account.iban}.",
    "[Bought|Sold] {count} shares of {shop} at {small} each. The portfolio at {card.bank} is worth {big} now.",
    "My pension statement from {employer} projects {amount} a month. I pay in {rate} percent of my {gross} salary.",
    "A charge of {small} by {shop} on card {card.number} [was not mine|looks wrong]. I disputed it with {card.bank} on {day}.",
    "Insurance premium of {small} for the [car|house|bike] was debited on {day}. The policy number is {number}.",
    "Our household budget for {month}: rent {amount}, food {small}, savings {tiny}. We earn {net} after tax.",
    "{employer} raised my salary to {gross} a year from {month}. That is {small} more each month after tax.",
    "Withdrew {tiny} in cash at {account.bank} on {day}. Account ending {account.last4} is down to {balance}.",
    "I owe {payee.name} {small} for [the tickets|dinner|the deposit|the repair]. Send it by bank transfer before {day}.",
    "The overdraft on account {account.last4} is {limit}. In {month} {account.bank} charged me {tiny} in interest and fees.",
    "Loan application at {card.bank}: income {gross}, debts {big}, credit score {score}. They offered {rate} percent.",
    "Direct debit of {tiny} to {shop} failed on {day} because the balance was only {tiny}. {account.bank} took a fee.",
    "Refund of {small} from {shop} arrived on {day} on the card that ends in {card.last4}.",
    "I moved {amount} from {account.bank} to the brokerage account at {card.bank}. The transfer reference is {number}.",
    "Rent of {amount} is due to {payee.name} on the {ordinal}. The landlord's IBAN is {payee.iban}.",
    "Bonus from {employer}: {big} before tax, {amount} after. I will use it to pay down the {card.bank} credit card.",
    "Child benefit of {tiny} and my wage of {net} came in on {day}. The account at {account.bank} stands at {balance}.",
    "The bank [refused|declined] the payment of {amount} to {shop}: wrong card code. Card {card.number} is valid until {card.expires}.",
)

NOTES = (
    "{friend.name}'s birthday is on {friend.birthday}. [Order a cake|Buy flowers|Get a book|Book a table] a week before.",
    "[Call|Ring|Text] {friend.name} on {friend.phone} about [the trip|Saturday|the key|the garden|the party].",
    "{friend.name} moved to {friend.address}. The new number is {friend.phone}.",
    "Password for {site}: {password}. I changed it on {day}.",
    "The Wi-Fi password at home is {password}. [The guest network|The router login] uses {password2}.",
    "[Dentist|Haircut|Parent evening|Car service|Piano lesson] on {day} at {hour}. Ask {family.name} to [drive me|pick me up].",
    "Family plan for {month}: {family.name} visits from {day}, and we [paint the kitchen|go to the lake|see grandma].",
    "{family.name}, my {family.relation}, was born on {family.birthday} and likes {gift}.",
    "Wrote to {friend.email} to say that I cannot come on {day}. {friend.name} was [kind|a little sad|relieved] about it.",
    "Our door code is {pin}. Only {family.name} and {friend.name} know it.",
    "Dear diary, {family.name} and I argued about [money|the move|the holidays|school] again. I will apologise on {day}.",
    "The spare key is with {friend.name} at {friend.address}. [The alarm|The garage] code is {pin}.",
    "Gift ideas for my {family.relation} {family.name}: {gift}, or {gift2}. The birthday is {family.birthday}.",
    "Dinner with {friend.name} and {friend2.name} on {day} at {hour}, at our place. {friend2.name} does not eat {food}.",
    "Login for {site} is {friend.email} and the password is {password}. The security answer is my first pet, {pet}.",
    "Pick {family.name} up from [school|the station|football|the airport] at {hour} on {day}, then call my {family.relation}.",
    "I told {friend.name} a secret: I want to leave my job in {month} and move to {city} with {family.name}.",
    "Emergency contact: {family.name}, my {family.relation}, {family.phone}, {family.address}.",
    "My phone unlocks with {pin}. If it gets lost, write to {friend.email}.",
    "Wedding of {friend.name} and {friend2.name} on {day}. We give them {gift}. Reply to {friend.email}.",
    "{pet} needs [his|her] shots on {day}. {friend.name} can look after {pet} while we are in {city}.",
    "Summer plan: with {family.name} to {city} from {day}. {friend.name} waters the plants and has the code {pin}.",
    "Passport number {number}, in the drawer of the desk. {family.name}'s passport expires in {month}.",
    "Met {friend.name} at {hour} in {city}. We talked about [her divorce|his new job|their baby|old times]; I promised not to tell.",
    "Wi-Fi at {friend.name}'s house: network {pet}-home, password {password}.",
    "To do on {day}: call {friend.name}, buy {gift} for {family.name}, renew the login for {site}.",
    "My {family.relation} {family.name} lives at {family.address}; visit on {day} and bring {food}.",
    "I dreamt of {family.name} last night. I miss my {family.relation} and should phone {family.phone} more often.",
    "Anniversary with my partner on {day}: table at {hour}, and {gift} as a surprise. {friend.name} minds the children.",
    "Contact card: {friend.name}, {friend.phone}, {friend.email}, {friend.address}. Birthday {friend.birthday}.",
)
