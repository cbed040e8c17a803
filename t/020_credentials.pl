# The six headers that may carry a key, and which of two decides.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new;
my ($key_id, $key) = $site->create_key;
my $wrong = $key =~ s/(.)$/$1 eq 'a' ? 'b' : 'a'/er;

sub verify { return $site->get('/api/auth/verify', @_) }

# with a header's own way to carry the key
sub carried
{
	my ($header, $credential) = @_;
	return $header =~ /authorization/i ? "$header: Bearer $credential" : "$header: $credential";
}

# each alone opens the call
foreach my $header (@credential_headers)
{
	is($site->post('/api/ai/chat', user_message(), carried($header, $key))->{status}, 200, "$header opens the call");
	my $answer = $site->post('/api/ai/chat', user_message(), carried($header, $wrong));
	is($answer->{status}, 401, "$header with a wrong key does not");
	is($answer->{body}, $body{invalid}, "$header with a wrong key: body");
	is(verify(carried(lc $header, $key))->{status}, 200, lc $header . ' in lower case');
}

# the earlier decides
foreach my $i (0 .. $#credential_headers)
{
	foreach my $j ($i + 1 .. $#credential_headers)
	{
		my ($earlier, $later) = @credential_headers[ $i, $j ];
		my $answer = verify(carried($later, $key), carried($earlier, $wrong));
		is($answer->{status}, 401, "wrong $earlier before right $later: refused");
		is($answer->{body}, $body{invalid}, "wrong $earlier before right $later: body");
		is(verify(carried($later, $wrong), carried($earlier, $key))->{status},
			200, "right $earlier before wrong $later: accepted");
	}
}

# the last three: Bearer in any case, or a bare key
foreach my $header (grep { /authorization/i } @credential_headers)
{
	foreach my $scheme ('bearer ', 'BEARER ', 'bEaReR ', 'Bearer   ', '')
	{
		is(verify("$header: $scheme$key")->{status}, 200, "$header: '${scheme}KEY'");
	}

	# other schemes carry no credential
	foreach my $value ('Basic dXNlcjpwYXNz', "Basic $key", 'Digest username="u"', 'Bearer', 'something')
	{
		my $answer = verify("$header: $value");
		is($answer->{status}, 401, "$header: $value");
		is($answer->{body}, $body{missing}, "$header: $value: counts as no key");
	}
}
is(verify('Authorization: Basic dXNlcjpwYXNz', "X-Authorization: Bearer $key")->{status},
	200, 'a header that carries no credential is passed over');
is(verify('X-API-Key;', "Api-Key: $key")->{status}, 200, 'so is an empty one');

is($site->overview($key_id, 'failed_requests'), 0, 'refused calls are not counted on the key');

done_testing();
