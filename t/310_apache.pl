# RegPilot behind Apache httpd: the suite of RegPilot::Conformance.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Conformance;

conformance(
	'apache',
	longest_key => 16_000,
	aborts_late => 1,
	paths => { map { $_ => 400 } '/%', '/%zz', '/../../../etc/passwd' },
	reloaded => [ 'apache.conf', 'FORBIDDEN', 'RELOADED', sub { $_[0]{json}{code} eq 'RELOADED' } ]);
