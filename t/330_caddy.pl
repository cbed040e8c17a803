# RegPilot behind Caddy: the suite of RegPilot::Conformance.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Conformance;

# What is no HTTP for Go's library is answered there, in plain text.
conformance(
	'caddy',
	large_header => [431],
	aborts_late => 1,
	malformed => qr{^HTTP/1\.1 400 Bad Request\r\n},
	cut_in_order => 1,
	paths => { map { $_ => 400 } '/%', '/%zz', '/api/auth/verify%00' },
	plain => { map { $_ => 1 } '/%', '/%zz' },
	reload_resets => 1,
	reloaded => [ 'Caddyfile', 'FORBIDDEN', 'RELOADED', sub { $_[0]{json}{code} eq 'RELOADED' } ]);
