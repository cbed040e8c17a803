# RegPilot behind nginx: the suite of RegPilot::Conformance.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Conformance;

conformance(
	'nginx',
	cut_in_order => 1,
	paths => { map { $_ => 400 } '/%', '/%zz', '/api/auth/verify%00', '/../../../etc/passwd' },
	reloaded => [ 'nginx.conf', 'FORBIDDEN', 'RELOADED', sub { $_[0]{json}{code} eq 'RELOADED' } ]);
