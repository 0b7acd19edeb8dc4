//! Traffic control, judged with `tc -j`.

use linux::{
    link::Ifb,
    netlink::RouteSocket,
    traffic::{self, Qdisc, TokenBucket},
};
use netmodel::IfName;

use crate::world::{in_namespace, json, run};

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

#[test]
fn what_comes_in_leaves_through_the_bucket_of_another() {
    in_namespace(|| {
        run("ip link add veth0 type veth peer name veth1");
        run("ip link set veth0 up");
        let (veth, name_of_ifb) = (name("veth0"), name("bwp0"));
        let mut socket = RouteSocket::open().unwrap();
        let index = socket.link(&veth).unwrap().unwrap().index;
        let ifb = socket.add_ifb(&Ifb { name: &name_of_ifb, mtu: 1400 }).unwrap();
        assert_eq!((&ifb.name, ifb.mtu, ifb.up), (&name_of_ifb, 1400, false));
        let again = socket.add_ifb(&Ifb { name: &name_of_ifb, mtu: 1400 }).unwrap_err();
        assert!(again.is_exists() && again.to_string() == "failed to add ifb device bwp0", "{again}");

        let slow = TokenBucket { rate: 1_250_000, burst: 62_500, limit: 93_750 };
        let fast = TokenBucket { rate: 10_000_000_000, burst: 500_000_000, limit: 750_000_000 };
        let requests = [
            slow.add(index, &veth),
            traffic::add_ingress(index, &veth),
            traffic::redirect(index, &veth, ifb.index),
            fast.add(ifb.index, &name_of_ifb),
        ];
        for (request, result) in requests.iter().zip(socket.apply(&requests)) {
            result.unwrap_or_else(|error| panic!("{error}: {}", error.cause));
            // A second time it is there.
            assert!(socket.request(request).is_err_and(|e| e.is_exists()) || request.kind == 44);
        }
        judge(slow);
        let seen = |socket: &mut RouteSocket, index| socket.qdiscs(index).unwrap();
        let near = seen(&mut socket, index);
        assert!(near.contains(&Qdisc::Ingress), "{near:?}");
        assert!(near.iter().any(|q| is_about(q, slow)), "{near:?}");
        let far = seen(&mut socket, ifb.index);
        assert!(matches!(&far[..], [bucket] if is_about(bucket, fast)), "{far:?}");
        assert!(socket.redirections(index).unwrap().contains(&ifb.index));

        for request in [traffic::delete_ingress(index, &veth), TokenBucket::delete(index, &veth)] {
            socket.request(&request).unwrap();
            assert!(socket.request(&request).is_err());
        }
        assert_eq!(seen(&mut socket, index), [Qdisc::Other("noqueue".to_owned())]);
    });
}

/// What `tc` shows.
fn judge(slow: TokenBucket) {
    let near = json("tc -j qdisc show dev veth0");
    assert_eq!((&near[0]["kind"], &near[1]["kind"]), (&"tbf".into(), &"ingress".into()), "{near}");
    let options = &near[0]["options"];
    assert_eq!(options["rate"], slow.rate, "{near}");
    assert!(options["burst"].as_u64().unwrap().abs_diff(slow.burst.into()) < 10, "{near}");
    assert!(options["lat"].as_u64().unwrap().abs_diff(25_000) < 10, "{near}");
    let fast = json("tc -j qdisc show dev bwp0");
    assert_eq!(fast[0]["options"]["rate"], 10_000_000_000_u64, "{fast}");
    let filters = json("tc -j filter show dev veth0 ingress");
    let action = &filters[2]["options"]["actions"][0];
    assert_eq!(filters[2]["protocol"], "all", "{filters}");
    assert_eq!(
        filters[2]["options"]["match"],
        serde_json::json!({"value": "0", "mask": "0", "offmask": "", "off": 0})
    );
    assert_eq!(
        (&action["mirred_action"], &action["to_dev"]),
        (&"redirect".into(), &"bwp0".into()),
        "{filters}"
    );
}

/// The kernel keeps a burst as a time.
fn is_about(qdisc: &Qdisc, wanted: TokenBucket) -> bool {
    let Qdisc::TokenBucket(found) = qdisc else { return false };
    let off = u64::from(found.burst.abs_diff(wanted.burst));
    (found.rate, found.limit) == (wanted.rate, wanted.limit) && off <= wanted.rate / 15_625_000 + 1
}
