/*
 * The yardstick of bench/ring.ts: what the two drivers, the bridge and the hypervisor do for a packet from
 * guest A to guest B, written in C in one thread, with the same checks, batches and copies.
 *
 *   A: requests -> tx ring -> netback: checks, head copied, rest left granted -> bridge ->
 *   rx requests of B, copies grant to grant -> rx ring -> B: checks, revokes, posts again; responses to A.
 *
 * Usage: ring SIZE MILLISECONDS [--fresh | --pairs N]
 *   --fresh  a new grant for each packet, revoked after its response, and pins by compare-and-exchange,
 *            as if the granting domains ran on other CPUs
 *   --pairs  so many guests A, each with a B of its own, in turn after each burst; the yardstick of bench/scale.ts, whose
 *            frontends keep fewer rx requests posted
 * Prints one line of JSON.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

enum { PAGE = 4096, BATCH = 64, LINEAR_MAX = 480, HEAD = 192, PULL = 128 };
enum { MAX_FRAGS = 20, TX_SLOTS_MAX = 21, RX_SLOTS_MAX = 19, ETH_HLEN = 14 };
enum { GTF_permit = 1, GTF_type = 3, GTF_readonly = 4, GTF_reading = 8, GTF_writing = 16 };
enum { TXF_csum_blank = 1, TXF_validated = 2, TXF_more = 4, TXF_extra = 8 };
enum { RXF_validated = 1, RXF_csum_blank = 2, RXF_more = 4, RXF_extra = 8 };
enum { RSP_ERROR = -1, RSP_OKAY = 0, RSP_NULL = 1 };
enum { CSUM_NONE, CSUM_UNNECESSARY, CSUM_PARTIAL = 3 };
enum { DOM0 = 0, GRANTS = 2048, DOM_PAGES = 4096, RING = 256 };
enum { POOL = 2 * RING, PACKETS = 1024, PAIRS_PACKETS = 128, PAIRS_RX_TARGET = 96, FDB_BUCKETS = 4096 };
enum { OKAY = 0, GENERAL_ERROR = -1, BAD_DOMAIN = -2, BAD_GNTREF = -3, BAD_PAGE = -9, BAD_ARG = -10 };

static bool fresh;
static uint32_t pairs = 1;

static void die(const char *why)
{
	fprintf(stderr, "ring: %s\n", why);
	exit(1);
}

/* ---- the hypervisor: memory, grants, events ---- */

struct grant_entry {
	_Atomic uint32_t head; /* flags, domid */
	uint32_t frame;
};

struct domain {
	uint16_t domid;
	uint32_t entries;
	struct grant_entry *table;
	uint32_t *read_pins, *write_pins;
	uint32_t *physmap, gfns;
	uint32_t *free_grefs, free_count;
	_Atomic uint64_t pending;
};

static uint8_t *machine;
static uint32_t next_frame = 1, frames;
static uint16_t *frame_owner;
static uint32_t dom_count;
static struct domain *doms;

/* A page of a domain's own, by guest frame number; frames are handed out alternately, as after boot. */
static uint32_t alloc_page(struct domain *d)
{
	if (next_frame == frames || d->gfns == DOM_PAGES)
		die("out of memory");
	frame_owner[next_frame] = d->domid;
	d->physmap[d->gfns] = next_frame++;
	return d->gfns++;
}

static uint8_t *own(struct domain *d, uint32_t gfn)
{
	return machine + (size_t)d->physmap[gfn] * PAGE;
}

static void domain_init(struct domain *d, uint16_t domid)
{
	d->domid = domid;
	d->entries = GRANTS;
	d->table = calloc(GRANTS, sizeof *d->table);
	d->read_pins = calloc(GRANTS, 4);
	d->write_pins = calloc(GRANTS, 4);
	d->physmap = calloc(DOM_PAGES, 4);
	d->gfns = 1;
	d->free_grefs = calloc(GRANTS, 4);
	for (uint32_t i = 8; i < GRANTS; i++)
		d->free_grefs[d->free_count++] = GRANTS + 7 - i;
}

static uint32_t gref_alloc(struct domain *d)
{
	if (d->free_count == 0)
		die("out of grants");
	return d->free_grefs[--d->free_count];
}

static void gref_grant(struct domain *d, uint32_t gref, uint16_t to, uint32_t gfn, bool readonly)
{
	struct grant_entry *e = &d->table[gref];

	e->frame = gfn;
	atomic_store_explicit(&e->head,
			      ((uint32_t)to << 16) | GTF_permit | (readonly ? GTF_readonly : 0),
			      memory_order_release);
}

static bool gref_end(struct domain *d, uint32_t gref)
{
	struct grant_entry *e = &d->table[gref];
	uint32_t head = atomic_load(&e->head);

	if (!fresh) {
		/* All domains run in this thread: nobody can be pinning it now. */
		if (head & (GTF_reading | GTF_writing))
			return false;
		atomic_store_explicit(&e->head, 0, memory_order_release);
		return true;
	}
	do {
		if (head & (GTF_reading | GTF_writing))
			return false;
	} while (!atomic_compare_exchange_weak(&e->head, &head, 0));
	return true;
}

struct copy {
	int32_t src_dom, dst_dom; /* -1: the caller's own page, ref is its gfn */
	uint32_t src_ref, dst_ref;
	uint16_t src_off, dst_off, len;
	int16_t status;
};

static struct domain *domain_by_id(int32_t domid)
{
	return (uint32_t)domid < dom_count ? &doms[domid] : NULL;
}

static int16_t pin(struct domain *g, uint32_t gref, uint16_t domid, bool write)
{
	struct grant_entry *e = &g->table[gref];
	uint32_t head = atomic_load(&e->head);
	uint32_t wanted = ((uint32_t)domid << 16) | GTF_permit;

	for (int tries = 0; tries < 5; tries++) {
		if ((head & (0xffff0000u | GTF_type)) != wanted)
			return GENERAL_ERROR;
		if (write && (head & GTF_readonly))
			return GENERAL_ERROR;
		if (atomic_compare_exchange_strong(&e->head, &head,
						   head | GTF_reading | (write ? GTF_writing : 0))) {
			(write ? g->write_pins : g->read_pins)[gref]++;
			return OKAY;
		}
	}
	return GENERAL_ERROR;
}

static void unpin(struct domain *g, uint32_t gref, bool write)
{
	uint32_t clear = 0;

	(write ? g->write_pins : g->read_pins)[gref]--;
	if (!g->write_pins[gref])
		clear |= GTF_writing;
	if (!g->write_pins[gref] && !g->read_pins[gref])
		clear |= GTF_reading;
	if (clear)
		atomic_fetch_and(&g->table[gref].head, ~clear);
}

/* Finds the page of one side; with --fresh it stays pinned, and *pinned says by whom. */
static int16_t claim(struct domain *caller, int32_t domid, uint32_t ref, bool write, uint8_t **page,
		     struct domain **pinned)
{
	struct domain *g;
	uint32_t head, gfn, frame;
	int16_t status;

	*pinned = NULL;
	if (domid < 0) {
		if (ref >= caller->gfns || frame_owner[caller->physmap[ref]] != caller->domid)
			return BAD_PAGE;
		*page = own(caller, ref);
		return OKAY;
	}
	g = domain_by_id(domid);
	if (!g)
		return BAD_DOMAIN;
	if (ref >= g->entries)
		return BAD_GNTREF;
	if (fresh) {
		status = pin(g, ref, caller->domid, write);
		if (status != OKAY)
			return status;
		*pinned = g;
	} else {
		head = atomic_load_explicit(&g->table[ref].head, memory_order_acquire);
		if ((head & (0xffff0000u | GTF_type | (write ? GTF_readonly : 0))) !=
		    (((uint32_t)caller->domid << 16) | GTF_permit))
			return GENERAL_ERROR;
	}
	gfn = *(volatile uint32_t *)&g->table[ref].frame;
	frame = gfn < g->gfns ? g->physmap[gfn] : 0;
	if (frame == 0) {
		if (*pinned)
			unpin(g, ref, write);
		return BAD_PAGE;
	}
	*page = machine + (size_t)frame * PAGE;
	return OKAY;
}

static void grant_copy(struct domain *caller, struct copy *ops, int count)
{
	for (int i = 0; i < count; i++) {
		struct copy *c = &ops[i];
		struct domain *src_pin, *dst_pin;
		uint8_t *src, *dst;

		if (c->src_off + c->len > PAGE || c->dst_off + c->len > PAGE) {
			c->status = BAD_ARG;
			continue;
		}
		c->status = claim(caller, c->src_dom, c->src_ref, false, &src, &src_pin);
		if (c->status != OKAY)
			continue;
		c->status = claim(caller, c->dst_dom, c->dst_ref, true, &dst, &dst_pin);
		if (c->status == OKAY) {
			memcpy(dst + c->dst_off, src + c->src_off, c->len);
			if (dst_pin)
				unpin(dst_pin, c->dst_ref, true);
		}
		if (src_pin)
			unpin(src_pin, c->src_ref, false);
	}
}

static uint64_t notifications;

static void notify(struct domain *d, int port)
{
	notifications++;
	atomic_fetch_or(&d->pending, 1ull << port);
}

/* ---- rings ---- */

struct sring {
	_Atomic uint32_t req_prod, req_event, rsp_prod, rsp_event;
	uint32_t pad[12];
};

struct tx_req {
	uint32_t gref;
	uint16_t offset, flags, id, size;
};
struct tx_rsp {
	uint16_t id;
	int16_t status;
};
struct rx_req {
	uint16_t id, pad;
	uint32_t gref;
};
struct rx_rsp {
	uint16_t id, offset, flags;
	int16_t status;
};
struct extra {
	uint8_t type, flags;
	union {
		struct {
			uint16_t size;
			uint8_t type, pad;
			uint16_t features;
		} gso;
		uint8_t mcast[6];
	} u;
};

static bool push(_Atomic uint32_t *prod, uint32_t to, _Atomic uint32_t *event)
{
	uint32_t from = atomic_load_explicit(prod, memory_order_relaxed);

	atomic_store(prod, to);
	return to - atomic_load(event) < to - from;
}

/* The one read of a slot that the other side may be changing. */
#define READ_SLOT(to, from)                                                   \
	do {                                                                  \
		memcpy(&(to), (from), sizeof(to));                            \
		__asm__ volatile("" : "+m"(to));                              \
	} while (0)

/* ---- packets ---- */

struct packet {
	uint8_t *data;
	uint32_t gfn, off; /* where `data` is */
	uint32_t linear, length;
	int frags;
	struct frag {
		int32_t source; /* domid, or -1 */
		uint32_t ref, offset, size;
		int32_t pool_index;
	} frag[MAX_FRAGS];
	int32_t pool_index;
	uint8_t checksum, gso_type;
	uint16_t gso_size, csum_start, csum_offset;
	int refs;
	struct vif *owner;
	uint32_t cookie;
	struct page_pool *pool;
	struct packet *next;
	struct packet_pool *home;
	uint8_t *buffer;
	uint32_t buffer_gfn, buffer_off;
};

struct packet_pool {
	struct packet *free;
};

struct page_pool {
	uint32_t gfn[POOL];
	uint16_t free[POOL];
	int count;
};

static void packets_init(struct packet_pool *pool, struct domain *d)
{
	int count = pairs > 1 && d != &doms[DOM0] ? PAIRS_PACKETS : PACKETS;
	struct packet *all = calloc(count, sizeof *all);

	for (int i = 0; i < count; i++) {
		static uint32_t gfn;
		if (i % 8 == 0)
			gfn = alloc_page(d);
		all[i].buffer_gfn = gfn;
		all[i].buffer_off = (i % 8) * 512;
		all[i].buffer = own(d, gfn) + all[i].buffer_off;
		all[i].home = pool;
		all[i].next = pool->free;
		pool->free = &all[i];
	}
}

static void pages_init(struct page_pool *pool, struct domain *d)
{
	for (int i = 0; i < POOL; i++) {
		pool->gfn[i] = alloc_page(d);
		pool->free[pool->count++] = i;
	}
}

static struct packet *packet_get(struct packet_pool *pool)
{
	struct packet *p = pool->free;

	if (!p)
		return NULL;
	pool->free = p->next;
	p->data = p->buffer + 32;
	p->gfn = p->buffer_gfn;
	p->off = p->buffer_off + 32;
	p->linear = p->length = 0;
	p->frags = 0;
	p->pool_index = -1;
	p->checksum = CSUM_NONE;
	p->gso_type = 0;
	p->gso_size = 0;
	p->refs = 1;
	p->owner = NULL;
	p->pool = NULL;
	p->next = NULL;
	return p;
}

static void packet_add(struct packet *p, int32_t source, uint32_t ref, uint32_t off, uint32_t size, int32_t index)
{
	struct frag *f = &p->frag[p->frags++];

	f->source = source;
	f->ref = ref;
	f->offset = off;
	f->size = size;
	f->pool_index = index;
	p->length += size;
}

static void packet_done(struct vif *v, struct packet *p);

static void packet_release(struct packet *p)
{
	if (--p->refs > 0)
		return;
	if (p->owner)
		packet_done(p->owner, p);
	if (p->pool) {
		for (int i = 0; i < p->frags; i++)
			if (p->frag[i].pool_index >= 0)
				p->pool->free[p->pool->count++] = p->frag[i].pool_index;
		if (p->pool_index >= 0)
			p->pool->free[p->pool->count++] = p->pool_index;
	}
	p->next = p->home->free;
	p->home->free = p;
}

/* Where the checksum of a TCP or UDP packet over IPv4 goes; false when it is neither. */
static bool setup_checksum(struct packet *p)
{
	uint8_t *d = p->data;
	uint32_t l3 = ETH_HLEN, l4, total;

	if (p->linear < l3 + 20 || d[12] != 8 || d[13] != 0)
		return false;
	if (d[l3] >> 4 != 4 || (d[l3] & 15) < 5)
		return false;
	l4 = l3 + (d[l3] & 15) * 4;
	total = d[l3 + 2] << 8 | d[l3 + 3];
	if (total < l4 - l3 || l3 + total > p->length + 65536 || ((d[l3 + 6] & 0x3f) | d[l3 + 7]) != 0)
		return false;
	if (d[l3 + 9] == 6) {
		if (p->linear < l4 + 20 || d[l4 + 12] >> 4 < 5 || p->linear < l4 + (d[l4 + 12] >> 4) * 4)
			return false;
		p->csum_offset = 16;
	} else if (d[l3 + 9] == 17) {
		if (p->linear < l4 + 8)
			return false;
		p->csum_offset = 6;
	} else
		return false;
	p->csum_start = l4;
	p->checksum = CSUM_PARTIAL;
	return true;
}

/* ---- netfront ---- */

struct front {
	struct domain *dom;
	struct packet_pool packets;
	struct page_pool tx_pool, rx_pool;
	struct sring *tx, *rx;
	struct tx_req *tx_slots;
	struct rx_req *rx_slots;
	uint32_t tx_prod, tx_cons, rx_prod, rx_cons;
	uint32_t tx_gref[POOL];
	uint16_t free_ids[RING], id_page[RING], first_id[RING];
	struct packet *id_packet[RING];
	uint8_t unanswered[RING];
	int free_id_count, extras_unanswered;
	uint32_t rx_gref[RING];
	int32_t rx_posted[RING];
	int port;
	uint64_t received, received_bytes;
};

static uint32_t rx_target = RING;

static void front_refill(struct front *f)
{
	uint32_t before = f->rx_prod;

	while (f->rx_prod - f->rx_cons < rx_target && f->rx_pool.count > 0) {
		uint32_t slot = f->rx_prod & (RING - 1);
		int index = f->rx_pool.free[--f->rx_pool.count];

		f->rx_posted[slot] = index;
		gref_grant(f->dom, f->rx_gref[slot], DOM0, f->rx_pool.gfn[index], false);
		f->rx_slots[slot].id = slot;
		f->rx_slots[slot].gref = f->rx_gref[slot];
		f->rx_prod++;
	}
	if (f->rx_prod != before && push(&f->rx->req_prod, f->rx_prod, &f->rx->req_event))
		notify(&doms[DOM0], f->port);
}

static void front_init(struct front *f, struct domain *d, int port)
{
	f->dom = d;
	f->port = port;
	packets_init(&f->packets, d);
	pages_init(&f->tx_pool, d);
	pages_init(&f->rx_pool, d);
	f->tx = (struct sring *)own(d, alloc_page(d));
	f->rx = (struct sring *)own(d, alloc_page(d));
	f->tx_slots = (struct tx_req *)(f->tx + 1);
	f->rx_slots = (struct rx_req *)(f->rx + 1);
	f->tx->req_event = f->tx->rsp_event = f->rx->req_event = f->rx->rsp_event = 1;
	for (int i = 0; i < RING; i++) {
		f->free_ids[f->free_id_count++] = RING - 1 - i;
		f->rx_gref[i] = gref_alloc(d);
		f->rx_posted[i] = -1;
	}
	for (int i = 0; i < POOL; i++) {
		f->tx_gref[i] = gref_alloc(d);
		if (!fresh)
			gref_grant(d, f->tx_gref[i], DOM0, f->tx_pool.gfn[i], true);
	}
	front_refill(f);
}

static uint16_t front_take_id(struct front *f, struct packet *p, uint16_t first, int index)
{
	uint16_t id = f->free_ids[--f->free_id_count];

	f->id_packet[id] = p;
	f->first_id[id] = first;
	f->id_page[id] = index;
	if (fresh)
		gref_grant(f->dom, f->tx_gref[index], DOM0, f->tx_pool.gfn[index], true);
	return id;
}

/* Writes the requests of a packet whose pages are all of the tx pool; false when the ring is full. */
static bool front_xmit(struct front *f, struct packet *p)
{
	int slots = (p->linear > 0) + p->frags;
	uint16_t first;

	if (RING - (f->tx_prod - f->tx_cons) < RX_SLOTS_MAX || f->free_id_count < RX_SLOTS_MAX)
		return false;
	if (p->pool != &f->tx_pool || p->pool_index < 0 || slots + (p->gso_type != 0) > RX_SLOTS_MAX)
		die("a packet that is not granted");
	for (int i = 0; i < p->frags; i++)
		if (p->frag[i].source >= 0 || p->frag[i].pool_index < 0)
			die("a fragment that is not granted");
	first = f->free_ids[f->free_id_count - 1];
	f->unanswered[first] = slots;
	for (int i = 0; i < slots; i++) {
		struct tx_req *req = &f->tx_slots[f->tx_prod++ & (RING - 1)];
		int index = i == 0 ? p->pool_index : p->frag[i - 1].pool_index;
		uint16_t flags = i + 1 < slots ? TXF_more : 0;

		if (i == 0) {
			if (p->checksum == CSUM_PARTIAL)
				flags |= TXF_csum_blank | TXF_validated;
			else if (p->checksum == CSUM_UNNECESSARY)
				flags |= TXF_validated;
			if (p->gso_type)
				flags |= TXF_extra;
		}
		req->id = front_take_id(f, p, first, index);
		req->gref = f->tx_gref[index];
		req->offset = i == 0 ? p->off : p->frag[i - 1].offset;
		req->flags = flags;
		req->size = i == 0 ? p->length : p->frag[i - 1].size;
		if (i == 0 && p->gso_type) {
			struct extra *x = (struct extra *)&f->tx_slots[f->tx_prod++ & (RING - 1)];
			memset(x, 0, sizeof *x);
			x->type = 1;
			x->u.gso.size = p->gso_size;
			x->u.gso.type = p->gso_type;
			f->extras_unanswered++;
		}
	}
	return true;
}

static void front_flush(struct front *f)
{
	if (push(&f->tx->req_prod, f->tx_prod, &f->tx->req_event))
		notify(&doms[DOM0], f->port);
}

static int front_reclaim(struct front *f)
{
	uint32_t prod = atomic_load(&f->tx->rsp_prod);
	int done = 0;

	if (prod - f->tx_cons > f->tx_prod - f->tx_cons)
		die("tx rsp_prod is beyond req_prod");
	while (f->tx_cons != prod) {
		struct tx_rsp rsp;
		struct packet *p;

		READ_SLOT(rsp, &f->tx_slots[f->tx_cons++ & (RING - 1)]);
		done++;
		if (rsp.status == RSP_NULL && f->extras_unanswered > 0) {
			f->extras_unanswered--;
			continue;
		}
		if (rsp.id >= RING || !(p = f->id_packet[rsp.id]))
			die("a tx response that is not outstanding");
		f->id_packet[rsp.id] = NULL;
		f->free_ids[f->free_id_count++] = rsp.id;
		if (fresh && !gref_end(f->dom, f->tx_gref[f->id_page[rsp.id]]))
			die("the backend still uses a tx grant");
		if (--f->unanswered[f->first_id[rsp.id]] == 0)
			packet_release(p);
	}
	/* final check: an event when half of what is outstanding is answered */
	atomic_store(&f->tx->rsp_event, f->tx_cons + ((f->tx_prod - f->tx_cons) >> 1) + 1);
	return done;
}

struct rx_packet {
	uint32_t consumed, slots, size;
	uint16_t flags;
	const char *reason;
	uint32_t index[RX_SLOTS_MAX], offset[RX_SLOTS_MAX], bytes[RX_SLOTS_MAX];
	uint8_t gso_type;
	uint16_t gso_size;
};

static bool take_gso(const struct extra *x, uint8_t *type, uint16_t *size)
{
	if (x->type != 1)
		return x->type >= 2 && x->type <= 5;
	*type = x->u.gso.type;
	*size = x->u.gso.size;
	return *size != 0 && (*type == 1 || *type == 2);
}

static void front_read_rx(struct front *f, uint32_t start, uint32_t available, struct rx_packet *rx)
{
	uint32_t next = 0;
	bool more = true;

	rx->slots = rx->size = 0;
	rx->reason = NULL;
	rx->gso_type = 0;
	while (more) {
		struct rx_rsp rsp;
		uint32_t index = start + next;

		if (next >= available) {
			rx->reason = "more_data past the last response";
			break;
		}
		READ_SLOT(rsp, &f->rx_slots[index & (RING - 1)]);
		next++;
		if (rx->slots == 0) {
			rx->flags = rsp.flags;
			for (bool extra = rsp.flags & RXF_extra; extra;) {
				struct extra x;

				if (next >= available) {
					rx->reason = "extra_info without an extra info";
					break;
				}
				READ_SLOT(x, &f->rx_slots[(start + next) & (RING - 1)]);
				if (!take_gso(&x, &rx->gso_type, &rx->gso_size))
					rx->reason = "an extra info that is unsound";
				extra = x.flags & 1;
				next++;
			}
		}
		if (rsp.status < 0)
			rx->reason = "the backend failed to fill a page";
		else if (rsp.offset + rsp.status > PAGE)
			rx->reason = "bytes that cross the page";
		if (rx->slots == RX_SLOTS_MAX) {
			rx->reason = "too many slots";
		} else {
			rx->index[rx->slots] = index;
			rx->offset[rx->slots] = rsp.offset;
			rx->bytes[rx->slots] = rsp.status;
			rx->size += rsp.status;
			rx->slots++;
		}
		more = rsp.flags & RXF_more;
	}
	rx->consumed = next;
}

/* A packet in place over the posted pages. */
static struct packet *front_build(struct front *f, const struct rx_packet *rx)
{
	struct packet *p;

	if (rx->size < ETH_HLEN || !(p = packet_get(&f->packets)))
		return NULL;
	p->pool = &f->rx_pool;
	if (rx->bytes[0] < (rx->size < PULL ? rx->size : PULL))
		die("a head in pieces");
	for (uint32_t i = 0; i < rx->slots; i++) {
		uint32_t slot = rx->index[i] & (RING - 1);
		int index = f->rx_posted[slot];

		if (rx->bytes[i] == 0)
			continue;
		f->rx_posted[slot] = -1;
		if (i == 0) {
			p->pool_index = index;
			p->gfn = f->rx_pool.gfn[index];
			p->off = rx->offset[0];
			p->data = own(f->dom, p->gfn) + p->off;
			p->linear = p->length = rx->bytes[0];
		} else
			packet_add(p, -1, f->rx_pool.gfn[index], rx->offset[i], rx->bytes[i], index);
	}
	p->gso_type = rx->gso_type;
	p->gso_size = rx->gso_size;
	if (rx->gso_type || (rx->flags & RXF_csum_blank)) {
		if (!setup_checksum(p)) {
			packet_release(p);
			return NULL;
		}
	} else if (rx->flags & RXF_validated)
		p->checksum = CSUM_UNNECESSARY;
	return p;
}

static int front_poll_rx(struct front *f, int budget)
{
	uint32_t prod = atomic_load(&f->rx->rsp_prod);
	struct rx_packet rx;
	int work = 0;

	if (prod - f->rx_cons > f->rx_prod - f->rx_cons)
		die("rx rsp_prod is beyond req_prod");
	while (work < budget && f->rx_cons != prod) {
		struct packet *p = NULL;

		front_read_rx(f, f->rx_cons, prod - f->rx_cons, &rx);
		work++;
		for (uint32_t i = 0; i < rx.consumed; i++)
			if (!gref_end(f->dom, f->rx_gref[(f->rx_cons + i) & (RING - 1)]))
				die("the backend still uses an rx grant");
		if (!rx.reason)
			p = front_build(f, &rx);
		for (uint32_t i = 0; i < rx.consumed; i++) {
			uint32_t slot = (f->rx_cons + i) & (RING - 1);

			if (f->rx_posted[slot] >= 0)
				f->rx_pool.free[f->rx_pool.count++] = f->rx_posted[slot];
			f->rx_posted[slot] = -1;
		}
		f->rx_cons += rx.consumed;
		if (!p)
			die("a received packet is bad");
		f->received++;
		f->received_bytes += p->length;
		packet_release(p);
	}
	front_refill(f);
	if (atomic_load(&f->rx->rsp_prod) == f->rx_cons)
		atomic_store(&f->rx->rsp_event, f->rx_cons + 1);
	return work;
}

/* ---- netback ---- */

struct tx_packet {
	uint32_t consumed, slots, size;
	uint16_t flags;
	const char *reason;
	bool fatal;
	uint32_t gref[TX_SLOTS_MAX], bytes[TX_SLOTS_MAX];
	uint16_t offset[TX_SLOTS_MAX], id[TX_SLOTS_MAX];
	uint8_t gso_type;
	uint16_t gso_size;
	int extras;
};

struct rx_plan {
	struct packet *packet;
	uint32_t start, slots;
	int first_copy, copies;
	uint16_t id[RX_SLOTS_MAX];
};

struct vif {
	struct domain *peer;
	struct sring *tx, *rx;
	struct tx_req *tx_slots;
	struct rx_req *rx_slots;
	uint32_t tx_cons, tx_rsp, rx_cons, rx_rsp;
	struct {
		uint16_t id[TX_SLOTS_MAX];
		uint8_t slots, extras;
	} record[RING];
	uint16_t free_records[RING];
	int free_record_count;
	struct packet *queue[1024];
	uint32_t queue_head, queue_tail, queue_bytes;
	struct rx_plan plans[BATCH];
	int planned, port;
	uint64_t tx_packets, tx_bytes, rx_packets, rx_bytes;
	uint32_t mtu;
	bool up;
};

static struct packet_pool back_packets;
static struct tx_packet tx_read[BATCH];
static struct packet *tx_built[BATCH];
static int tx_first[BATCH + 1];
static struct copy tx_copies[256], rx_copies[512];
static int rx_copy_count;

static void vif_init(struct vif *v, struct front *f, int port)
{
	v->peer = f->dom;
	v->tx = f->tx;
	v->rx = f->rx;
	v->tx_slots = f->tx_slots;
	v->rx_slots = f->rx_slots;
	v->port = port;
	v->mtu = 65500;
	v->up = true;
	for (int i = 0; i < RING; i++)
		v->free_records[v->free_record_count++] = i;
}

static void bridge_receive(struct vif *from, struct packet *p);

static bool back_read_tx(struct vif *v, uint32_t start, uint32_t available, struct tx_packet *tx)
{
	struct tx_req req;
	uint32_t next = 1, slots = 1;
	int32_t rest;
	bool more;

	tx->reason = NULL;
	tx->fatal = false;
	tx->gso_type = 0;
	tx->extras = 0;
	READ_SLOT(req, &v->tx_slots[start & (RING - 1)]);
	tx->gref[0] = req.gref;
	tx->offset[0] = req.offset;
	tx->id[0] = req.id;
	tx->flags = req.flags;
	tx->size = rest = req.size;
	for (bool extra = req.flags & TXF_extra; extra;) {
		struct extra x;

		if (next >= available)
			return false;
		READ_SLOT(x, &v->tx_slots[(start + next) & (RING - 1)]);
		if (!take_gso(&x, &tx->gso_type, &tx->gso_size)) {
			tx->reason = "an extra info that is unsound";
			tx->fatal = true;
		}
		tx->extras++;
		extra = x.flags & 1;
		next++;
	}
	for (more = req.flags & TXF_more; more;) {
		if (slots > 20) {
			tx->reason = "too many slots";
			tx->fatal = true;
			break;
		}
		if (next >= available)
			return false;
		if (slots > 18)
			tx->reason = "too many slots";
		READ_SLOT(req, &v->tx_slots[(start + next) & (RING - 1)]);
		tx->gref[slots] = req.gref;
		tx->offset[slots] = req.offset;
		tx->id[slots] = req.id;
		tx->bytes[slots] = req.size;
		rest -= req.size;
		if (rest < 0)
			tx->reason = "more bytes than the packet has";
		if (req.offset + req.size > PAGE) {
			tx->reason = "a fragment that crosses its page";
			tx->fatal = true;
		}
		more = req.flags & TXF_more;
		slots++;
		next++;
	}
	tx->slots = slots;
	tx->consumed = next;
	tx->bytes[0] = rest;
	if (tx->reason)
		return true;
	if (tx->size < ETH_HLEN)
		tx->reason = "shorter than an Ethernet header";
	if (tx->offset[0] + rest > PAGE) {
		tx->reason = "the first slot crosses its page";
		tx->fatal = true;
	}
	return true;
}

static void back_respond(struct vif *v, const uint16_t *ids, int slots, int extras, int16_t status)
{
	for (int i = 0; i < slots; i++) {
		struct tx_rsp *rsp = (struct tx_rsp *)&v->tx_slots[v->tx_rsp++ & (RING - 1)];

		rsp->id = ids[i];
		rsp->status = status;
		if (i == 0)
			for (int k = 0; k < extras; k++) {
				rsp = (struct tx_rsp *)&v->tx_slots[v->tx_rsp++ & (RING - 1)];
				rsp->id = 0;
				rsp->status = RSP_NULL;
			}
	}
}

static void packet_done(struct vif *v, struct packet *p)
{
	uint32_t r = p->cookie;

	p->owner = NULL;
	v->free_records[v->free_record_count++] = r;
	back_respond(v, v->record[r].id, v->record[r].slots, v->record[r].extras, RSP_OKAY);
}

static void back_push_tx(struct vif *v)
{
	if (push(&v->tx->rsp_prod, v->tx_rsp, &v->tx->rsp_event))
		notify(v->peer, v->port);
}

/* Plans the copies of a head and leaves the rest as granted fragments. */
static int back_build(struct vif *v, const struct tx_packet *tx, int copies, struct packet **out)
{
	struct packet *p = packet_get(&back_packets);
	uint32_t skip, linear, off;
	uint32_t i;

	*out = p;
	if (!p)
		return copies;
	linear = tx->size <= LINEAR_MAX ? tx->size : HEAD;
	p->linear = p->length = linear;
	off = p->off;
	for (i = 0, skip = linear; skip > 0 && i < tx->slots; i++) {
		uint32_t take = tx->bytes[i] < skip ? tx->bytes[i] : skip;

		if (take == 0)
			continue;
		tx_copies[copies++] = (struct copy){ v->peer->domid, -1, tx->gref[i], p->gfn, tx->offset[i], off,
						     take, GENERAL_ERROR };
		off += take;
		skip -= take;
	}
	for (i = 0, skip = linear; i < tx->slots; i++) {
		if (skip >= tx->bytes[i]) {
			skip -= tx->bytes[i];
			continue;
		}
		packet_add(p, v->peer->domid, tx->gref[i], tx->offset[i] + skip, tx->bytes[i] - skip, -1);
		skip = 0;
	}
	return copies;
}

static void back_deliver(struct vif *v, int i)
{
	struct tx_packet *tx = &tx_read[i];
	struct packet *p = tx_built[i];

	for (int c = tx_first[i]; c < tx_first[i + 1]; c++)
		if (tx_copies[c].status != OKAY)
			die("a head was not copied");
	if (p->frags == 0) {
		back_respond(v, tx->id, tx->slots, tx->extras, RSP_OKAY);
	} else {
		uint32_t r = v->free_records[--v->free_record_count];

		memcpy(v->record[r].id, tx->id, tx->slots * sizeof tx->id[0]);
		v->record[r].slots = tx->slots;
		v->record[r].extras = tx->extras;
		p->owner = v;
		p->cookie = r;
	}
	p->gso_type = tx->gso_type;
	p->gso_size = tx->gso_size;
	if (tx->gso_type || (tx->flags & TXF_csum_blank)) {
		if (!setup_checksum(p))
			die("a checksum that goes nowhere");
	} else if (tx->flags & TXF_validated)
		p->checksum = CSUM_UNNECESSARY;
	v->tx_packets++;
	v->tx_bytes += p->length;
	bridge_receive(v, p);
}

static int back_poll(struct vif *v, int budget)
{
	int work = 0;

	while (work < budget) {
		uint32_t prod = atomic_load(&v->tx->req_prod);
		uint32_t available = prod - v->tx_cons;
		int taken = 0, copies = 0;

		if (prod - v->tx_rsp > RING)
			die("the tx ring claims too many requests");
		if (available > RING - (v->tx_cons - v->tx_rsp))
			available = RING - (v->tx_cons - v->tx_rsp);
		while (available > 0 && work + taken < budget && copies + TX_SLOTS_MAX <= 256) {
			struct tx_packet *tx = &tx_read[taken];

			if (!back_read_tx(v, v->tx_cons, available, tx) || tx->reason)
				die("a bad tx packet");
			v->tx_cons += tx->consumed;
			available -= tx->consumed;
			tx_first[taken] = copies;
			copies = back_build(v, tx, copies, &tx_built[taken]);
			if (!tx_built[taken])
				die("out of packets");
			tx_first[++taken] = copies;
		}
		if (taken == 0)
			break;
		grant_copy(&doms[DOM0], tx_copies, copies);
		for (int i = 0; i < taken; i++)
			back_deliver(v, i);
		work += taken;
	}
	back_push_tx(v);
	/* final check */
	if (atomic_load(&v->tx->req_prod) == v->tx_cons)
		atomic_store(&v->tx->req_event, v->tx_cons + 1);
	return work;
}

static void back_plan(struct vif *v, struct packet *p, struct rx_plan *plan)
{
	struct rx_req req;
	uint32_t filled = 0, slots = 1;

	plan->packet = p;
	plan->start = v->rx_cons;
	plan->first_copy = rx_copy_count;
	READ_SLOT(req, &v->rx_slots[plan->start & (RING - 1)]);
	plan->id[0] = req.id;
	if (p->gso_type)
		plan->id[slots++] = *(volatile uint16_t *)&v->rx_slots[(plan->start + 1) & (RING - 1)].id;
	for (int i = -1; i < p->frags; i++) {
		int32_t source = i < 0 ? -1 : p->frag[i].source;
		uint32_t ref = i < 0 ? p->gfn : p->frag[i].ref;
		uint32_t off = i < 0 ? p->off : p->frag[i].offset;
		uint32_t left = i < 0 ? p->linear : p->frag[i].size;

		while (left > 0) {
			uint32_t take;

			if (filled == PAGE) {
				READ_SLOT(req, &v->rx_slots[(plan->start + slots) & (RING - 1)]);
				plan->id[slots++] = req.id;
				filled = 0;
			}
			take = left < PAGE - filled ? left : PAGE - filled;
			rx_copies[rx_copy_count++] = (struct copy){ source, v->peer->domid, ref, req.gref, off, filled,
								    take, GENERAL_ERROR };
			filled += take;
			off += take;
			left -= take;
		}
	}
	plan->slots = slots;
	plan->copies = rx_copy_count - plan->first_copy;
}

static void back_copy_rx(struct vif *v)
{
	grant_copy(&doms[DOM0], rx_copies, rx_copy_count);
	for (int i = 0; i < v->planned; i++) {
		struct rx_plan *plan = &v->plans[i];
		struct packet *p = plan->packet;
		uint32_t left = p->length;
		uint16_t flags = p->gso_type ? RXF_extra : 0;

		for (int c = 0; c < plan->copies; c++)
			if (rx_copies[plan->first_copy + c].status != OKAY)
				die("an rx page was not filled");
		if (p->checksum == CSUM_PARTIAL)
			flags |= RXF_csum_blank | RXF_validated;
		else if (p->checksum == CSUM_UNNECESSARY)
			flags |= RXF_validated;
		for (uint32_t k = 0; k < plan->slots; k++) {
			struct rx_rsp *rsp = (struct rx_rsp *)&v->rx_slots[(plan->start + k) & (RING - 1)];
			uint32_t bytes;

			if (p->gso_type && k == 1) {
				struct extra *x = (struct extra *)rsp;

				memset(x, 0, sizeof *x);
				x->type = 1;
				x->u.gso.size = p->gso_size;
				x->u.gso.type = p->gso_type;
				continue;
			}
			bytes = left < PAGE ? left : PAGE;
			left -= bytes;
			if (left > 0)
				flags |= RXF_more;
			rsp->id = plan->id[k];
			rsp->offset = 0;
			rsp->flags = flags;
			rsp->status = bytes;
			flags = 0;
		}
		v->rx_rsp = plan->start + plan->slots;
		v->rx_packets++;
		v->rx_bytes += p->length;
		packet_release(p);
	}
	v->planned = 0;
	rx_copy_count = 0;
}

static void back_run_rx(struct vif *v)
{
	uint32_t prod = atomic_load(&v->rx->req_prod);

	while (v->queue_head != v->queue_tail) {
		struct packet *p = v->queue[v->queue_head & 1023];
		uint32_t needed = (p->length + PAGE - 1) / PAGE + (p->gso_type != 0);

		if (prod - v->rx_rsp > RING)
			die("the rx ring claims too many requests");
		if (needed > prod - v->rx_cons) {
			prod = atomic_load(&v->rx->req_prod);
			if (needed > prod - v->rx_cons) {
				atomic_store(&v->rx->req_event, v->rx_cons + needed);
				break;
			}
		}
		if (v->planned == BATCH || 512 - rx_copy_count < 2 + p->frags + (int)needed)
			back_copy_rx(v);
		v->queue_head++;
		v->queue_bytes -= p->length;
		back_plan(v, p, &v->plans[v->planned++]);
		v->rx_cons += needed;
	}
	back_copy_rx(v);
	if (push(&v->rx->rsp_prod, v->rx_rsp, &v->rx->rsp_event))
		notify(v->peer, v->port);
}

/* ---- bridge: learns sources, looks up destinations ---- */

struct fdb_entry {
	uint64_t mac;
	struct vif *port;
	double seen;
	struct fdb_entry *next;
};

static struct fdb_entry *buckets[FDB_BUCKETS];
static double now_ms;

static uint32_t mac_hash(uint64_t mac)
{
	uint64_t h = mac * 0x9e3779b97f4a7c15ull;

	return (h >> 32) & (FDB_BUCKETS - 1);
}

static struct fdb_entry *fdb_find(uint64_t mac)
{
	struct fdb_entry *e = buckets[mac_hash(mac)];

	while (e && e->mac != mac)
		e = e->next;
	return e;
}

static uint64_t mac_at(const uint8_t *d)
{
	return (uint64_t)d[0] << 40 | (uint64_t)d[1] << 32 | (uint32_t)d[2] << 24 | d[3] << 16 | d[4] << 8 | d[5];
}

static void fdb_learn(uint64_t mac, struct vif *port)
{
	struct fdb_entry *e = fdb_find(mac);

	if (!e) {
		e = calloc(1, sizeof *e);
		e->mac = mac;
		e->next = buckets[mac_hash(mac)];
		buckets[mac_hash(mac)] = e;
	}
	e->seen = now_ms;
	e->port = port;
}

static void bridge_receive(struct vif *from, struct packet *p)
{
	uint64_t src, dst;
	struct fdb_entry *e;
	struct vif *to;

	if (p->linear < ETH_HLEN)
		die("a short packet");
	dst = mac_at(p->data);
	src = mac_at(p->data + 6);
	if ((src >> 40 & 1) || src == 0 || (dst >> 40 & 1))
		die("an address that is not expected");
	fdb_learn(src, from);
	e = fdb_find(dst);
	if (!e || now_ms - e->seen >= 300000)
		die("an unknown address");
	to = e->port;
	if (to == from || !to->up || (!p->gso_type && p->length > to->mtu + 18))
		die("a packet that must not be forwarded");
	if (to->queue_bytes > 128 * PAGE || (p->length + PAGE - 1) / PAGE + (p->gso_type != 0) > 18) {
		packet_release(p);
		return;
	}
	to->queue[to->queue_tail++ & 1023] = p;
	to->queue_bytes += p->length;
}

/* ---- the bench ---- */

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* The address of a guest by its domid. */
static uint64_t mac_of(uint16_t domid)
{
	return 0x00163e000000ull | domid;
}

static void put_mac(uint8_t *at, uint64_t mac)
{
	for (int i = 0; i < 6; i++)
		at[i] = mac >> (40 - 8 * i);
}

static void fill_page(uint8_t *page, uint32_t size, uint16_t from, uint16_t to)
{
	static const uint8_t head[ETH_HLEN + 40] = {
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0,                         /* Ethernet */
		0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, /* IPv4 */
		0x12, 0x34, 0x23, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0
	};
	uint32_t ip = size - ETH_HLEN;

	for (int i = 0; i < PAGE; i++)
		page[i] = i * 7;
	memcpy(page, head, sizeof head);
	put_mac(page, mac_of(to));
	put_mac(page + 6, mac_of(from));
	page[16] = ip >> 8;
	page[17] = ip;
	if (size > PAGE)
		page[23] = 6;
}

static struct packet *source(struct front *f, uint32_t size)
{
	struct packet *p = packet_get(&f->packets);
	uint32_t left = size;

	if (!p || f->tx_pool.count < 17)
		die("the source is out of packets");
	p->pool = &f->tx_pool;
	while (left > 0) {
		int index = f->tx_pool.free[--f->tx_pool.count];
		uint32_t take = left < PAGE ? left : PAGE;

		if (p->length == 0) {
			p->pool_index = index;
			p->gfn = f->tx_pool.gfn[index];
			p->off = 0;
			p->data = own(f->dom, p->gfn);
			p->linear = p->length = take;
		} else
			packet_add(p, -1, f->tx_pool.gfn[index], 0, take, index);
		left -= take;
	}
	if (size > PAGE) {
		p->checksum = CSUM_PARTIAL;
		p->csum_start = 34;
		p->csum_offset = 16;
		p->gso_type = 1;
		p->gso_size = 1448;
	}
	return p;
}

struct pair {
	struct front a, b;
	struct vif vif_a, vif_b;
};

static void pair_init(struct pair *p, uint16_t domid, uint32_t size)
{
	struct domain *a = &doms[domid], *b = &doms[domid + 1];
	/* More are never used: the page that came back last is taken first. */
	int used = pairs > 1 ? BATCH : POOL;

	domain_init(a, domid);
	domain_init(b, domid + 1);
	front_init(&p->a, a, 1);
	front_init(&p->b, b, 2);
	vif_init(&p->vif_a, &p->a, 1);
	vif_init(&p->vif_b, &p->b, 2);
	fdb_learn(mac_of(domid + 1), &p->vif_b);
	for (int i = POOL - used; i < POOL; i++)
		fill_page(own(a, p->a.tx_pool.gfn[i]), size, domid, domid + 1);
}

/* A burst from A to B. */
static void pair_run(struct pair *p, uint32_t size)
{
	struct front *a = &p->a, *b = &p->b;

	for (int sent = 0; sent < (size > PAGE ? 8 : BATCH) && RING - (a->tx_prod - a->tx_cons) >= RX_SLOTS_MAX; sent++)
		if (!front_xmit(a, source(a, size)))
			die("the ring is full");
	front_flush(a);
	if (atomic_load(&doms[DOM0].pending))
		atomic_exchange(&doms[DOM0].pending, 0);
	back_poll(&p->vif_a, BATCH);
	back_run_rx(&p->vif_b);
	back_push_tx(&p->vif_a);
	if (atomic_load(&b->dom->pending))
		atomic_exchange(&b->dom->pending, 0);
	front_poll_rx(b, BATCH);
	if (atomic_load(&a->dom->pending))
		atomic_exchange(&a->dom->pending, 0);
	front_reclaim(a);
}

static uint64_t received(const struct pair *all, uint64_t *bytes)
{
	uint64_t packets = 0;

	*bytes = 0;
	for (uint32_t i = 0; i < pairs; i++) {
		packets += all[i].b.received;
		*bytes += all[i].b.received_bytes;
	}
	return packets;
}

int main(int argc, char **argv)
{
	uint32_t size = argc > 1 ? atoi(argv[1]) : 64, turn = 0;
	double ms = argc > 2 ? atof(argv[2]) : 300, start, end, cpu;
	uint64_t base_packets = 0, base_bytes = 0, packets, bytes;
	struct rusage before, after;
	struct pair *all;
	bool warm = true;

	fresh = argc > 3 && strcmp(argv[3], "--fresh") == 0;
	if (argc > 4 && strcmp(argv[3], "--pairs") == 0) {
		pairs = atoi(argv[4]);
		rx_target = PAIRS_RX_TARGET;
	}
	if (size < 60 || size > 65535 || pairs < 1 || pairs > 10000)
		die("SIZE is 60 to 65535, N 1 to 10000");
	dom_count = 1 + 2 * pairs;
	frames = 16384 + (pairs - 1) * 2 * (2 * POOL + PAIRS_PACKETS / 8 + 8);
	machine = mmap(NULL, (size_t)frames * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	frame_owner = calloc(frames, sizeof *frame_owner);
	doms = calloc(dom_count, sizeof *doms);
	all = calloc(pairs, sizeof *all);
	if (machine == MAP_FAILED || !frame_owner || !doms || !all)
		die("out of memory");
	domain_init(&doms[DOM0], DOM0);
	packets_init(&back_packets, &doms[DOM0]);
	now_ms = seconds() * 1000;
	for (uint32_t i = 0; i < pairs; i++)
		pair_init(&all[i], 1 + 2 * i, size);
	/* Each has had its first bursts. */
	for (uint32_t i = 0; i < 4 * pairs; i++)
		pair_run(&all[i % pairs], size);

	start = seconds();
	end = start + ms / 4000;
	getrusage(RUSAGE_SELF, &before);
	for (;;) {
		now_ms = seconds() * 1000;
		if (now_ms >= end * 1000) {
			if (!warm)
				break;
			warm = false;
			base_packets = received(all, &base_bytes);
			start = now_ms / 1000;
			end = start + ms / 1000;
			getrusage(RUSAGE_SELF, &before);
		}
		pair_run(&all[turn], size);
		if (++turn == pairs)
			turn = 0;
	}
	end = seconds();
	getrusage(RUSAGE_SELF, &after);
	cpu = (after.ru_utime.tv_sec - before.ru_utime.tv_sec) + (after.ru_stime.tv_sec - before.ru_stime.tv_sec) +
	      (after.ru_utime.tv_usec - before.ru_utime.tv_usec) / 1e6 +
	      (after.ru_stime.tv_usec - before.ru_stime.tv_usec) / 1e6;
	packets = received(all, &bytes);
	printf("{\"packets\":%llu,\"bytes\":%llu,\"seconds\":%.6f,\"cpuSeconds\":%.6f}\n",
	       (unsigned long long)(packets - base_packets), (unsigned long long)(bytes - base_bytes), end - start, cpu);
	return 0;
}
