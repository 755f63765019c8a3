/**
 * The unit tests of FreeBSD's netback as data (sys/dev/xen/netback/netback_unit_tests.c, facts only): inputs
 * and what is to come out. `selftest.ts` runs them; the sscanf tests, which test C's library, are left out.
 */

export interface UnitVector {
  readonly name: string;
  /** The step of FreeBSD's data path that it tests. */
  readonly group: string;
  /** Indexes that the ring starts with; absent for a fresh ring. */
  readonly ring_state?: Readonly<Record<string, number>>;
  // biome-ignore lint/suspicious/noExplicitAny: each group of vectors has a shape of its own
  readonly input: any;
  // biome-ignore lint/suspicious/noExplicitAny: each group of vectors has a shape of its own
  readonly expect: any;
}

export const UNIT_VECTORS: readonly UnitVector[] = [
  {
    name: 'xnb_ring2pkt_emptyring',
    group: 'ring2pkt',
    input: {
      tx_slots: [],
      pushed: true,
    },
    expect: {
      consumed: 0,
    },
  },
  {
    name: 'xnb_ring2pkt_1req',
    group: 'ring2pkt',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 0,
          size: 69,
          id: 0,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
    },
    expect: {
      consumed: 1,
      size: 69,
      car_size: 69,
      flags: 0,
      valid: true,
      list_len: 1,
      car: 0,
    },
  },
  {
    name: 'xnb_ring2pkt_2req',
    group: 'ring2pkt',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 4,
          size: 100,
          id: 0,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 0,
          size: 40,
          id: 0,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
    },
    expect: {
      consumed: 2,
      size: 100,
      car_size: 60,
      flags: 0,
      valid: true,
      list_len: 2,
      car: 0,
      cdr: 1,
    },
  },
  {
    name: 'xnb_ring2pkt_3req',
    group: 'ring2pkt',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 4,
          size: 200,
          id: 0,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 4,
          size: 40,
          id: 0,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 0,
          size: 50,
          id: 0,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
    },
    expect: {
      consumed: 3,
      size: 200,
      car_size: 110,
      flags: 0,
      valid: true,
      list_len: 3,
      car: 0,
      cdr: 1,
      last_request_at: 'cdr+1 is the slot of the third request',
    },
  },
  {
    name: 'xnb_ring2pkt_extra',
    group: 'ring2pkt',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 12,
          size: 150,
          id: 0,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'extra',
          type: 1,
          flags: 0,
          gso: {
            size: 250,
            type: 1,
            features: 0,
          },
        },
        {
          kind: 'request',
          flags: 0,
          size: 50,
          id: 0,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
    },
    expect: {
      consumed: 3,
      extra: {
        type: 1,
        flags: 0,
        gso_size: 250,
        gso_type: 1,
      },
      size: 150,
      car_size: 100,
      flags: 8,
      valid: true,
      list_len: 2,
      car: 0,
      cdr: 2,
      last_request_at: 'cdr is the slot of the second data request',
    },
  },
  {
    name: 'xnb_ring2pkt_partial',
    group: 'ring2pkt',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 4,
          size: 150,
          id: 0,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
    },
    expect: {
      consumed: 0,
      valid: false,
    },
  },
  {
    name: 'xnb_ring2pkt_wraps',
    group: 'ring2pkt',
    ring_state: {
      front_req_prod_pvt: 254,
      front_rsp_cons: 254,
      sring_req_prod: 254,
      sring_req_event: 255,
      sring_rsp_prod: 254,
      sring_rsp_event: 255,
      back_rsp_prod_pvt: 254,
      back_req_cons: 254,
    },
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 4,
          size: 550,
          id: 0,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 4,
          size: 100,
          id: 0,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 0,
          size: 50,
          id: 0,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
    },
    expect: {
      consumed: 3,
      valid: true,
      list_len: 3,
      last_request_at: 'cdr+1 (index 256, slot 0) is the slot of the third request',
    },
  },
  {
    name: 'xnb_txpkt2rsp_emptypkt',
    group: 'txpkt2rsp',
    input: {
      tx_slots: [],
      error: 0,
    },
    expect: {
      back_ring_struct: 'byte-identical to before',
      shared_ring_header: 'byte-identical to before (whole sring struct as declared)',
    },
  },
  {
    name: 'xnb_txpkt2rsp_1req',
    group: 'txpkt2rsp',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 0,
          size: 1000,
          id: 0,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
      error: 0,
    },
    expect: {
      consumed: 1,
      pkt_valid: true,
      rsp_prod_pvt: '== sring.req_prod (= 1)',
      responses_relative_to_front_rsp_cons: {
        '0': {
          id: 0,
          status: 0,
        },
      },
    },
  },
  {
    name: 'xnb_txpkt2rsp_extra',
    group: 'txpkt2rsp',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 8,
          size: 1000,
          id: 69,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'extra',
          type: 1,
          flags: 0,
          gso: null,
        },
      ],
      pushed: true,
      error: 0,
    },
    expect: {
      consumed: 2,
      pkt_valid: true,
      rsp_prod_pvt: '== sring.req_prod (= 2)',
      responses_relative_to_front_rsp_cons: {
        '0': {
          id: 69,
          status: 0,
        },
        '1': {
          status: 1,
        },
      },
    },
  },
  {
    name: 'xnb_txpkt2rsp_long',
    group: 'txpkt2rsp',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 12,
          size: 1000,
          id: 254,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'extra',
          type: 1,
          flags: 0,
          gso: null,
        },
        {
          kind: 'request',
          flags: 4,
          size: 300,
          id: 1034,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 0,
          size: 400,
          id: 34,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
      error: 0,
    },
    expect: {
      consumed: 4,
      pkt_valid: true,
      rsp_prod_pvt: '== sring.req_prod (= 4)',
      responses_relative_to_front_rsp_cons: {
        '0': {
          id: 254,
          status: 0,
        },
        '1': {
          status: 1,
        },
        '2': {
          id: 1034,
          status: 0,
        },
        '3': {
          id: 34,
          status: 0,
        },
      },
    },
  },
  {
    name: 'xnb_txpkt2rsp_invalid',
    group: 'txpkt2rsp',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 8,
          size: 1000,
          id: 69,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'extra',
          type: 255,
          flags: 0,
          gso: null,
        },
      ],
      pushed: true,
      error: 0,
    },
    expect: {
      consumed: 2,
      pkt_valid: false,
      rsp_prod_pvt: '== sring.req_prod (= 2)',
      responses_relative_to_front_rsp_cons: {
        '0': {
          id: 69,
          status: -1,
        },
        '1': {
          status: 1,
        },
      },
    },
  },
  {
    name: 'xnb_txpkt2rsp_error',
    group: 'txpkt2rsp',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 0,
          size: 1000,
          id: 0,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
      error: 1,
    },
    expect: {
      consumed: 1,
      pkt_valid: true,
      rsp_prod_pvt: '== sring.req_prod (= 1)',
      responses_relative_to_front_rsp_cons: {
        '0': {
          id: 0,
          status: -1,
        },
      },
    },
  },
  {
    name: 'xnb_txpkt2rsp_wraps',
    group: 'txpkt2rsp',
    ring_state: {
      front_req_prod_pvt: 254,
      front_rsp_cons: 254,
      sring_req_prod: 254,
      sring_req_event: 255,
      sring_rsp_prod: 254,
      sring_rsp_event: 255,
      back_rsp_prod_pvt: 254,
      back_req_cons: 254,
    },
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 4,
          size: 550,
          id: 1,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 4,
          size: 100,
          id: 2,
          gref: 0,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 0,
          size: 50,
          id: 3,
          gref: 0,
          offset: 0,
        },
      ],
      pushed: true,
      error: 0,
    },
    expect: {
      consumed: 3,
      pkt_valid: true,
      rsp_prod_pvt: '== sring.req_prod (= 257)',
      responses_relative_to_front_rsp_cons: {
        '2': {
          id: 3,
          status: 0,
        },
      },
    },
  },
  {
    name: 'xnb_pkt2mbufc_empty',
    group: 'pkt2mbufc',
    input: {
      size: 0,
      size_symbolic: '0',
      flags: 0,
    },
    expect: {
      no_crash: true,
    },
  },
  {
    name: 'xnb_pkt2mbufc_short',
    group: 'pkt2mbufc',
    input: {
      size: 168,
      size_symbolic: 'MINCLSIZE-1',
      flags: 0,
    },
    expect: {
      single_buffer: true,
      trailing_space_of_first: '>= size',
    },
  },
  {
    name: 'xnb_pkt2mbufc_csum',
    group: 'pkt2mbufc',
    input: {
      size: 168,
      size_symbolic: 'MINCLSIZE-1',
      flags: 2,
    },
    expect: {
      single_buffer: true,
      trailing_space_of_first: '>= size',
      csum_flags_set: ['CSUM_IP_CHECKED', 'CSUM_IP_VALID', 'CSUM_DATA_VALID', 'CSUM_PSEUDO_HDR'],
      csum_data: '0xffff (by implementation, not asserted)',
    },
  },
  {
    name: 'xnb_pkt2mbufc_1cluster',
    group: 'pkt2mbufc',
    input: {
      size: 169,
      size_symbolic: 'MINCLSIZE',
      flags: 0,
    },
    expect: {
      single_buffer: true,
      trailing_space_of_first: '>= size',
    },
  },
  {
    name: 'xnb_pkt2mbufc_largecluster',
    group: 'pkt2mbufc',
    input: {
      size: 2049,
      size_symbolic: 'MCLBYTES+1',
      flags: 0,
    },
    expect: {
      single_buffer: true,
      trailing_space_of_first: '>= size',
    },
  },
  {
    name: 'xnb_pkt2mbufc_2cluster',
    group: 'pkt2mbufc',
    input: {
      size: 4097,
      size_symbolic: '2*MCLBYTES+1',
      flags: 0,
    },
    expect: {
      single_buffer: false,
      total_trailing_space: '>= size',
    },
  },
  {
    name: 'xnb_txpkt2gnttab_empty',
    group: 'txpkt2gnttab',
    input: {
      tx_slots: [],
    },
    expect: {
      n_entries: 0,
    },
  },
  {
    name: 'xnb_txpkt2gnttab_short',
    group: 'txpkt2gnttab',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 0,
          size: 168,
          id: 0,
          gref: 7,
          offset: 17,
        },
      ],
      buffers: [168],
    },
    expect: {
      n_entries: 1,
      entries: [
        {
          len: 168,
          flags: 1,
          src_ref: 7,
          src_offset: 17,
          src_domid: 32752,
          dst_buf: 0,
          dst_offset: 0,
          dst_domid: 32752,
        },
      ],
    },
  },
  {
    name: 'xnb_txpkt2gnttab_2req',
    group: 'txpkt2gnttab',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 4,
          size: 1900,
          id: 0,
          gref: 7,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 0,
          size: 500,
          id: 0,
          gref: 8,
          offset: 0,
        },
      ],
      buffers: [2048],
    },
    expect: {
      n_entries: 2,
      entries: [
        {
          len: 1400,
          dst_buf: 0,
          dst_offset: 0,
          src_ref: 7,
          src_offset: 0,
        },
        {
          len: 500,
          dst_buf: 0,
          dst_offset: 1400,
          src_ref: 8,
          src_offset: 0,
        },
      ],
    },
  },
  {
    name: 'xnb_txpkt2gnttab_2cluster',
    group: 'txpkt2gnttab',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 0,
          size: 4097,
          id: 0,
          gref: 8,
          offset: 0,
        },
      ],
      buffers: [4096, 224],
    },
    expect: {
      n_entries: 2,
      entries: [
        {
          len: 4096,
          dst_buf: 0,
          dst_offset: 0,
          src_offset: 0,
        },
        {
          len: 1,
          dst_buf: 1,
          dst_offset: 0,
          src_offset: 4096,
        },
      ],
    },
  },
  {
    name: 'xnb_update_mbufc_short',
    group: 'update_mbufc',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 0,
          size: 168,
          id: 0,
          gref: 7,
          offset: 17,
        },
      ],
      buffers: [168],
    },
    expect: {
      n_entries: 1,
      buf0_len: 168,
      pkt_len: 168,
    },
  },
  {
    name: 'xnb_update_mbufc_2req',
    group: 'update_mbufc',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 4,
          size: 1900,
          id: 0,
          gref: 7,
          offset: 0,
        },
        {
          kind: 'request',
          flags: 0,
          size: 500,
          id: 0,
          gref: 8,
          offset: 0,
        },
      ],
      buffers: [2048],
    },
    expect: {
      n_entries: 2,
      buf0_len: 1900,
      pkt_len: 1900,
    },
  },
  {
    name: 'xnb_update_mbufc_2cluster',
    group: 'update_mbufc',
    input: {
      tx_slots: [
        {
          kind: 'request',
          flags: 0,
          size: 4097,
          id: 0,
          gref: 8,
          offset: 0,
        },
      ],
      buffers: [4096, 224],
    },
    expect: {
      n_entries: 2,
      pkt_len: 4097,
      buf_lens: [4096, 1],
    },
  },
  {
    name: 'xnb_mbufc2pkt_empty',
    group: 'mbufc2pkt',
    input: {
      start: 0,
      free_slots: 64,
      pkt_len: 0,
      first_buf_len: 0,
      tso_segsz: null,
      has_pkthdr: false,
    },
    expect: {
      valid: false,
    },
  },
  {
    name: 'xnb_mbufc2pkt_short',
    group: 'mbufc2pkt',
    input: {
      start: 9,
      free_slots: 64,
      pkt_len: 128,
      first_buf_len: 128,
      tso_segsz: null,
      has_pkthdr: true,
    },
    expect: {
      valid: true,
      size: 128,
      car_size: 128,
      flags_clear: 12,
      list_len: 1,
      car: 9,
    },
  },
  {
    name: 'xnb_mbufc2pkt_1cluster',
    group: 'mbufc2pkt',
    input: {
      start: 12,
      free_slots: 32,
      pkt_len: 2048,
      first_buf_len: 2048,
      tso_segsz: null,
      has_pkthdr: true,
    },
    expect: {
      valid: true,
      size: 2048,
      car_size: 2048,
      flags_clear: 12,
      list_len: 1,
      car: 12,
    },
  },
  {
    name: 'xnb_mbufc2pkt_2short',
    group: 'mbufc2pkt',
    input: {
      start: 14,
      free_slots: 32,
      pkt_len: 316,
      first_buf_len: 163,
      tso_segsz: null,
      has_pkthdr: true,
    },
    expect: {
      valid: true,
      size: 316,
      car: 14,
      car_size: 163,
      list_len: 1,
      cdr: 15,
    },
  },
  {
    name: 'xnb_mbufc2pkt_long',
    group: 'mbufc2pkt',
    input: {
      start: 3,
      free_slots: 15,
      pkt_len: 9557,
      first_buf_len: 9557,
      tso_segsz: null,
      has_pkthdr: true,
    },
    expect: {
      valid: true,
      size: 9557,
      car: 3,
      flags_clear: 8,
      cdr: 4,
      list_len: 3,
    },
  },
  {
    name: 'xnb_mbufc2pkt_extra',
    group: 'mbufc2pkt',
    input: {
      start: 3,
      free_slots: 15,
      pkt_len: 9557,
      first_buf_len: 9557,
      tso_segsz: 496,
      has_pkthdr: true,
    },
    expect: {
      valid: true,
      size: 9557,
      car: 3,
      flags_set: 9,
      cdr: 5,
      extra: {
        type: 1,
        flags: 0,
        gso_size: 496,
        gso_type: 1,
      },
    },
  },
  {
    name: 'xnb_mbufc2pkt_nospace',
    group: 'mbufc2pkt',
    input: {
      start: 3,
      free_slots: 2,
      pkt_len: 9557,
      first_buf_len: 9557,
      tso_segsz: null,
      has_pkthdr: true,
    },
    expect: {
      error: 11,
      valid: false,
    },
  },
  {
    name: 'xnb_rxpkt2gnttab_empty',
    group: 'rxpkt2gnttab',
    input: {
      pkt_len: 0,
      free_slots: 60,
      start: 0,
    },
    expect: {
      n_entries: 0,
    },
  },
  {
    name: 'xnb_rxpkt2gnttab_short',
    group: 'rxpkt2gnttab',
    input: {
      pkt_len: 128,
      buffers: [128],
      free_slots: 60,
      start: 9,
      rx_requests: {
        '9': {
          gref: 7,
        },
      },
    },
    expect: {
      n_entries: 1,
      entries: [
        {
          len: 128,
          flags: 2,
          dst_offset: 0,
          dst_domid: 32752,
          src_domid: 32752,
          src_buf: 0,
          src_offset: 0,
        },
      ],
    },
  },
  {
    name: 'xnb_rxpkt2gnttab_2req',
    group: 'rxpkt2gnttab',
    input: {
      pkt_len: 4097,
      first_buf_len: 4097,
      chain_len: 2,
      free_slots: 60,
      start: 11,
    },
    expect: {
      n_entries: '>= number of mbufs in chain (2); exactly 2 in the model',
      each_entry: 'len + dest.offset <= 4096',
      sum_len: 4097,
    },
  },
  {
    name: 'xnb_rxpkt2rsp_empty',
    group: 'rxpkt2rsp',
    input: {
      pkt_len: 0,
      free_slots: 60,
      start: 0,
      n_entries: 0,
    },
    expect: {
      consumed: 0,
      back_ring_struct: 'unchanged',
      shared_ring_header: 'unchanged',
    },
  },
  {
    name: 'xnb_rxpkt2rsp_short',
    group: 'rxpkt2rsp',
    ring_state: {
      back_req_cons: 5,
      back_rsp_prod_pvt: 5,
      sring_req_prod: 6,
      sring_rsp_prod: 5,
    },
    input: {
      pkt_len: 128,
      buffers: [128],
      symbolic: null,
      free_slots: 60,
      start: 5,
      tso_segsz: null,
      rx_requests: {
        '5': {
          gref: 7,
          id: 0,
        },
      },
      inject_status: null,
    },
    expect: {
      consumed: 1,
      n_entries: 1,
      rsp_prod_pvt: 6,
      responses: {
        '5': {
          id: 0,
          offset: 0,
          flags: 0,
          status: 128,
        },
      },
      untouched: null,
    },
  },
  {
    name: 'xnb_rxpkt2rsp_extra',
    group: 'rxpkt2rsp',
    ring_state: {
      back_req_cons: 3,
      back_rsp_prod_pvt: 3,
      sring_req_prod: 5,
      sring_rsp_prod: 3,
    },
    input: {
      pkt_len: 14,
      buffers: [14],
      symbolic: null,
      free_slots: 15,
      start: 3,
      tso_segsz: 496,
      rx_requests: {
        '3': {
          gref: 65,
          id: 49,
        },
        '4': {
          gref: 66,
          id: 50,
        },
      },
      inject_status: null,
    },
    expect: {
      consumed: 2,
      n_entries: 1,
      rsp_prod_pvt: 5,
      responses: {
        '3': {
          id: 49,
          offset: 0,
          flags: 11,
          status: 14,
        },
        '4': {
          extra: {
            type: 1,
            flags: 0,
            gso_size: 496,
            gso_type: 1,
            pad: 0,
            features: 0,
          },
        },
      },
      untouched: null,
    },
  },
  {
    name: 'xnb_rxpkt2rsp_2short',
    group: 'rxpkt2rsp',
    ring_state: {
      back_req_cons: 14,
      back_rsp_prod_pvt: 14,
      sring_req_prod: 15,
      sring_rsp_prod: 14,
    },
    input: {
      pkt_len: 316,
      buffers: [163, 153],
      symbolic: 'MHLEN-5, MHLEN-15',
      free_slots: 32,
      start: 14,
      tso_segsz: null,
      rx_requests: {
        '14': {
          gref: 54,
          id: 47,
        },
      },
      inject_status: null,
    },
    expect: {
      consumed: 1,
      n_entries: 2,
      rsp_prod_pvt: 15,
      responses: {
        '14': {
          id: 47,
          offset: 0,
          flags: 0,
          status: 316,
        },
      },
      untouched: null,
    },
  },
  {
    name: 'xnb_rxpkt2rsp_2slots',
    group: 'rxpkt2rsp',
    ring_state: {
      back_req_cons: 15,
      back_rsp_prod_pvt: 15,
      sring_req_prod: 17,
      sring_rsp_prod: 15,
    },
    input: {
      pkt_len: 4196,
      buffers: [4096, 100],
      symbolic: null,
      free_slots: 3,
      start: 15,
      tso_segsz: null,
      rx_requests: {
        '15': {
          gref: 24,
          id: 17,
        },
        '16': {
          gref: 34,
          id: 37,
        },
      },
      inject_status: null,
    },
    expect: {
      consumed: 2,
      n_entries: 2,
      rsp_prod_pvt: 17,
      responses: {
        '15': {
          id: 17,
          offset: 0,
          flags: 4,
          status: 4096,
        },
        '16': {
          id: 37,
          offset: 0,
          flags: 0,
          status: 100,
        },
      },
      untouched: null,
    },
  },
  {
    name: 'xnb_rxpkt2rsp_copyerror',
    group: 'rxpkt2rsp',
    ring_state: {
      back_req_cons: 2,
      back_rsp_prod_pvt: 2,
      sring_req_prod: 3,
      sring_rsp_prod: 2,
    },
    input: {
      pkt_len: 14336,
      buffers: [14336],
      symbolic: null,
      free_slots: 9,
      start: 2,
      tso_segsz: null,
      rx_requests: {
        '2': {
          gref: 42,
          id: 7,
        },
        '3': {
          gref: 6859,
          id: 6859,
        },
      },
      inject_status: {
        entry: 2,
        status: -1,
      },
    },
    expect: {
      consumed: 1,
      n_entries: 4,
      rsp_prod_pvt: 3,
      responses: {
        '2': {
          id: 7,
          status: -1,
        },
      },
      untouched: {
        '3': {
          gref: 6859,
          id: 6859,
        },
      },
    },
  },
  {
    name: 'xnb_add_mbuf_cksum_arp',
    group: 'add_mbuf_cksum',
    input: {
      packet_hex: 'ffffffffffff001517e9306808060001080006040001001517e93068c0a80a04000000000000c0a80a06',
      csum_flags: 'all',
    },
    expect: {
      packet_hex: 'ffffffffffff001517e9306808060001080006040001001517e93068c0a80a04000000000000c0a80a06',
    },
  },
  {
    name: 'xnb_add_mbuf_cksum_icmp',
    group: 'add_mbuf_cksum',
    input: {
      packet_hex:
        '00163e23500b001630000000080045000054001c000040010000c0a80a04c0a80a050800aed77b040000accf024f6ac4070008090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232400000000000000000000000000000000000000',
      csum_flags: 'all',
    },
    expect: {
      ip_sum: '0xe533',
      icmp_cksum: '0xaed7 (unchanged)',
      packet_hex:
        '00163e23500b001630000000080045000054001c00004001e533c0a80a04c0a80a050800aed77b040000accf024f6ac4070008090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232400000000000000000000000000000000000000',
    },
  },
  {
    name: 'xnb_add_mbuf_cksum_udp',
    group: 'add_mbuf_cksum',
    input: {
      packet_hex:
        '00163e23500b001630000000080045000024000400004011baadc0a80a04c0a80a0551ae08ae0010baad467265654253440a',
      csum_flags: 'all',
    },
    expect: {
      ip_sum: '0xe56b',
      udp_sum: '0xdde2',
      packet_hex:
        '00163e23500b001630000000080045000024000400004011e56bc0a80a04c0a80a0551ae08ae0010dde2467265654253440a',
    },
  },
  {
    name: 'xnb_add_mbuf_cksum_tcp',
    group: 'add_mbuf_cksum',
    input: {
      packet_hex:
        '00163e23500b00163000000008004500003c0008400040060000c0a80a04c0a80a059cd908ae00f72b107f37ba6c80180410baad00000101080a000081dfce18207f467265654253440a',
      csum_flags: 'all',
    },
    expect: {
      ip_sum: '0xa55a',
      tcp_sum: '0x2f64',
      packet_hex:
        '00163e23500b00163000000008004500003c000840004006a55ac0a80a04c0a80a059cd908ae00f72b107f37ba6c801804102f6400000101080a000081dfce18207f467265654253440a',
    },
  },
  {
    name: 'xnb_add_mbuf_cksum_tcp_swcksum',
    group: 'add_mbuf_cksum',
    input: {
      packet_hex:
        '00163e23500b00163000000008004500003c000840004006deadc0a80a04c0a80a059cd908ae00f72b107f37ba6c80180410beef00000101080a000081dfce18207f467265654253440a',
      csum_flags: 0,
    },
    expect: {
      ip_sum: '0xdead',
      tcp_sum: '0xbeef',
      packet_hex:
        '00163e23500b00163000000008004500003c000840004006deadc0a80a04c0a80a059cd908ae00f72b107f37ba6c80180410beef00000101080a000081dfce18207f467265654253440a',
    },
  },
];
